"""EF203: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow, Role
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import batch, classify, glorot, he
from tests.diagnose.programs import mlp as network

RULE = "EF203"


def tiny(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=1e-4)


def with_spread(*spreads: float | None) -> Flow:
    """Linear layers with tanh between them, and how much samples differ after each op."""
    flow = chain([Op("addmm" if i % 2 == 0 else "tanh") for i in range(len(spreads))])
    rows = [
        replace(row, sample_spread=spreads[row.order]) if row.site.role is Role.ACTIVATION else row
        for row in flow
    ]
    return Flow(rows, "measured")


def test_deep_sigmoids_bring_all_samples_together() -> None:
    finding = only(classify(network(8, nn.Sigmoid), batch()), RULE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.SATURATING_ACTIVATION)
    assert finding.message.startswith("All samples look alike to Linear 14")
    assert CauseName.DEPTH_WITHOUT_SKIP in [cause.name for cause in finding.causes]


def test_biases_outweigh_weights_that_are_too_small() -> None:
    model = network(4, nn.Tanh, tiny)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias)
    finding = only(classify(model, batch()), RULE)
    assert top(finding) is CauseName.INIT_TOO_SMALL


@pytest.mark.parametrize("seed", [0, 1])
def test_nets_that_keep_samples_apart_are_silent(seed: int) -> None:
    torch.manual_seed(seed)
    assert silent(classify(network(4, nn.Sigmoid), batch()), RULE)
    assert silent(classify(network(30, nn.Tanh, glorot), batch()), RULE)
    assert silent(classify(network(40, nn.ReLU, he), batch()), RULE)
    assert silent(classify(network(8, nn.Sigmoid, norm=nn.BatchNorm1d), batch()), RULE)


def test_equal_samples_prove_nothing() -> None:
    assert silent(classify(network(8, nn.Sigmoid), batch()[:1].expand(32, -1)), RULE)
    assert silent(classify(network(8, nn.Sigmoid), batch(1)), RULE)


@pytest.mark.parametrize(("end", "alarm"), [(1.1e-8, False), (0.9e-8, True)])
def test_the_threshold(end: float, alarm: bool) -> None:
    assert bool(diagnose(with_spread(1.0, 0.5, 0.5, end, end), select=RULE).findings) is alarm


def test_what_was_never_there_cannot_be_lost() -> None:
    assert diagnose(with_spread(1e-7, 1e-7, 1e-8, 0.9e-9, 1e-9), select=RULE).findings == ()
    assert diagnose(with_spread(1e-5, 1e-7, 1e-8, 0.9e-9, 1e-9), select=RULE).findings != ()


def test_the_text_of_a_finding() -> None:
    (finding,) = diagnose(with_spread(1.0, 1e-2, 1e-3, 1e-9, 1e-9), select=RULE).findings
    assert [item.text for item in finding.evidence] == [
        "Samples differ in 1.0e-09 of the mean square of what Addmm 4 reads (alarm below 1e-08); "
        "behind Addmm 0 in 1.0e+00.",
        "Most is lost at Tanh 3: a factor of 10^6.0.",
    ]
    assert (finding.site, finding.source) == ("3", "net.py:4")
    assert finding.causes[0].name is CauseName.SATURATING_ACTIVATION
    assert finding.causes[0].confidence == pytest.approx(8 / 9)
    assert finding.causes[0].evidence.endswith("add the same to all samples: 8.0 of 9.0 decades.")


def test_what_other_steps_bring_back_is_said() -> None:
    (finding,) = diagnose(with_spread(1.0, 1e-9, 1e-8, 0.9e-9, 1e-9), select=RULE).findings
    assert finding.causes[0].evidence.endswith(": 10.0 decades, of which other steps bring 1.0 back.")


def test_a_flow_without_the_column_cannot_be_judged() -> None:
    diagnosis = diagnose(chain([Op("addmm"), Op("addmm")]), select=RULE)
    assert diagnosis.skipped[0].reason == "the Flow does not say how much samples differ"
    assert judge(classify(network(2, nn.ReLU), batch()), RULE).skipped == ()
