"""EF202: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Program, batch, classify, he, images, initialised
from tests.diagnose.programs import mlp as network

RULE = "EF202"


def biased(bias: float) -> Program:
    model = network(3, nn.ReLU, he)
    nn.init.constant_(model[2].bias, bias)  # type: ignore[arg-type]
    return classify(model, batch())


def test_a_bias_that_silences_most_units() -> None:
    finding = only(biased(-4.5), RULE)
    assert (finding.severity, finding.site, top(finding)) == (Severity.WARNING, "3", CauseName.DEAD_RELU)
    assert finding.remedies[0].startswith("Use LeakyReLU")


def test_a_layer_that_is_wholly_dead() -> None:
    finding = only(biased(-50.0), RULE)
    assert (finding.severity, finding.message) == (Severity.ERROR, "100 % of the units of ReLU 3 are dead.")


def test_zero_weights_are_called_by_their_name() -> None:
    model = initialised(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 10)), he)
    nn.init.zeros_(model[0].weight)  # type: ignore[index]
    finding = only(classify(model, images()), RULE)
    assert top(finding) is CauseName.ZERO_INIT_SYMMETRY
    assert finding.causes[0].evidence == "Conv2d 0 gives nothing but zeros."


@pytest.mark.parametrize("bias", [0.0, -1.0, -2.0])
def test_sparse_is_not_dead(bias: float) -> None:
    assert silent(biased(bias), RULE)


def test_the_text_of_a_finding() -> None:
    ops = [Op("addmm"), Op("relu", dead=0.75, zeros=0.8), Op("addmm"), Op("relu", dead=0.9, zeros=0.95)]
    (finding,) = diagnose(chain([*ops, Op("addmm")]), select=RULE).findings
    assert finding.message == "90 % of the units of Relu 3 are dead."
    assert [evidence.text for evidence in finding.evidence] == [
        "90 % of the 100 units of Relu 3 are zero for the whole batch; a layer without dead units shows at "
        "most 65 %.",
        "So do Relu 1: 2 of 2 in all.",
    ]
    assert finding.causes[0].evidence == (
        "90 % of the units are silent where symmetric weights leave 50 % at most. "
        "Their input has mean 0 and standard deviation 1."
    )


@pytest.mark.parametrize(
    ("dead", "zeros", "batch_size", "units", "fires"),
    [
        (0.50, 0.5, 64, 1000, False),  # all samples alike: half of the units are off
        (0.54, 0.5, 64, 1000, False),
        (0.56, 0.6, 64, 1000, True),
        (0.60, 0.6, 64, 10, False),  # ten units prove nothing
        (0.66, 0.95, 8, 1000, False),  # .95^8 = .66: one sample in twenty, and only eight samples
        (0.75, 0.95, 8, 1000, True),
        (0.60, 0.95, 64, 1000, True),  # .95^64 = .04
        (1.00, 1.0, 1, 1000, True),
        (1.00, 1.0, 64, 4, False),
    ],
)
def test_the_gate_for_small_batches_and_sparse_units(
    dead: float, zeros: float, batch_size: int, units: int, fires: bool
) -> None:
    ops = [Op("addmm"), Op("relu", dead=dead, zeros=zeros), Op("addmm")]
    flow = chain(ops, batch=batch_size, units=units)
    assert bool(diagnose(flow, select=RULE).findings) is fires


def test_channels_are_units_after_a_convolution() -> None:
    model = nn.Sequential(nn.Conv1d(4, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 6, 10))
    nn.init.constant_(model[0].bias, -9.0)  # type: ignore[arg-type]
    finding = only(classify(model, batch(16, 32).unflatten(1, (4, 8))), RULE)
    assert "of the 32 units" in finding.evidence[0].text


def test_a_hinge_in_the_loss_is_no_unit() -> None:
    program = classify(network(2, nn.ReLU, he, outputs=20), batch())
    assert silent(
        Program(program.model, program.inputs, lambda out: (out - 1e3).relu().sum() + out.sum()), RULE
    )


def test_without_the_shares_the_rule_says_that_it_cannot_judge() -> None:
    flow = chain([Op("addmm"), Op("relu", dead=0.9), Op("addmm")])
    blind = Flow([replace(row, dead_fraction=None) for row in flow], "measured")
    diagnosis = diagnose(blind, select=RULE)
    assert diagnosis.findings == ()
    assert diagnosis.skipped[0].reason == "the Flow does not say which units were zero for the whole batch"
