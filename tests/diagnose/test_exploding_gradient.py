"""EF102: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow
from tests.diagnose.chains import chain, mlp
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Branch, batch, classify, he
from tests.diagnose.programs import mlp as network

RULE = "EF102"


def test_weights_that_are_too_large() -> None:
    def large(weight: torch.Tensor) -> torch.Tensor:
        return nn.init.normal_(weight, std=3 * (2 / weight.shape[1]) ** 0.5)

    finding = only(classify(network(10, nn.ReLU, large), batch()), RULE)
    assert (finding.severity, finding.site, top(finding)) == (Severity.WARNING, "0", CauseName.INIT_TOO_LARGE)
    assert finding.evidence[0].value == pytest.approx(9 * 0.4771, abs=0.5)


class Sine(nn.Module):
    """sin(frequency · x)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.frequency * x)


@pytest.mark.parametrize("made_for", [False, True])
def test_constant_factors_that_the_weights_are_not_made_for(made_for: bool) -> None:
    """Sitzmann et al., NeurIPS 2020, section 3.2: sin(30 W x) needs weights U(±√(6/n)/30)."""

    def init(weight: torch.Tensor) -> torch.Tensor:
        return nn.init.uniform_(weight, -(bound := (6 / weight.shape[1]) ** 0.5 / 30), bound)

    model = network(5, lambda: Sine(30.0), init if made_for else None)
    if made_for:
        assert silent(classify(model, batch()), RULE)
        return
    finding = only(classify(model, batch()), RULE)
    assert top(finding) is CauseName.INIT_TOO_LARGE
    assert "with a constant pass a factor of 30" in finding.causes[0].evidence


def test_batchnorm_in_a_deep_plain_stack_explodes_by_itself() -> None:
    """Yang 2019: π/(π−1) per layer in the square, 4.1 decades over 50 layers; 20 layers are harmless."""
    finding = only(classify(network(50, nn.ReLU, norm=nn.BatchNorm1d), batch()), RULE)
    assert top(finding) is CauseName.NORMALIZATION_EXPLOSION
    assert finding.evidence[0].value == pytest.approx(49 * 0.0832, abs=0.8)
    assert silent(classify(network(20, nn.ReLU, norm=nn.BatchNorm1d), batch()), RULE)


def test_residual_branches_that_add_up_unscaled() -> None:
    def model(scale: float) -> nn.Module:
        blocks = [Branch(network(2, nn.ReLU, he, inputs=128, outputs=128), scale) for _ in range(24)]
        return nn.Sequential(nn.Linear(64, 128), *blocks, nn.Linear(128, 10))

    finding = only(classify(model(1.0), batch()), RULE)
    assert top(finding) is CauseName.RESIDUAL_GROWTH
    assert silent(classify(model(24**-0.5), batch()), RULE)


def test_what_residual_blocks_grow_beyond_standard_weights_is_the_weights_doing() -> None:
    def large(weight: torch.Tensor) -> torch.Tensor:
        return nn.init.normal_(weight, std=5 * (2 / weight.shape[1]) ** 0.5)

    def model(init: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
        blocks = [Branch(network(2, nn.ReLU, init, inputs=64, outputs=64)) for _ in range(16)]
        return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 10))

    finding = only(classify(model(large), batch()), RULE)
    assert top(finding) is CauseName.INIT_TOO_LARGE
    assert "where sums of branches with standard weights pass 1.7" in finding.causes[0].evidence
    assert top(only(classify(model(large), batch()), "EF404")) is CauseName.INIT_TOO_LARGE
    sound = only(classify(model(he), batch()), RULE)
    assert top(sound) is CauseName.RESIDUAL_GROWTH


def test_the_text_of_a_finding() -> None:
    flow = chain(mlp(10, "relu", weights=4.242641, slope=0.707107))
    (finding,) = diagnose(flow, select=RULE).findings
    assert finding.message == (
        "The gradient grows by a factor of 10^4.3 from Addmm 18 back to Addmm 0, over 9 layers."
    )
    assert [evidence.text for evidence in finding.evidence] == [
        "log10 of the gradient's norm at Addmm 0 over that at Addmm 18: 4.29 (alarm above 3).",
        "0.48 decades gained per layer; by chance alone, networks of this depth and width end between "
        "-0.3 and +0.2 in all.",
    ]
    assert [(cause.name, cause.evidence) for cause in finding.causes] == [
        (
            CauseName.INIT_TOO_LARGE,
            "The weights of 9 layers pass a factor of 4.2 on average where 1.4 keeps the gradient: "
            "all 4.3 decades.",
        ),
        (
            CauseName.DEPTH_WITHOUT_SKIP,
            "9 layers in a row without a skip connection: their factors multiply.",
        ),
    ]
    assert finding.remedies[0].startswith("Initialise the weights for the activation: He (kaiming_normal_)")


@pytest.mark.parametrize(
    ("decades", "norm", "severities"),
    [(2.9, 1.0, []), (3.1, 1.0, ["warning"]), (3.1, 1e19, ["error"]), (0.0, 1e30, [])],
)
def test_the_threshold_and_the_squares_that_overflow(
    decades: float, norm: float, severities: list[str]
) -> None:
    flow = chain(mlp(4, "relu", weights=1.414214 * 10 ** (decades / 3), slope=0.707107), top=norm)
    assert [finding.severity for finding in diagnose(flow, select=RULE).findings] == severities


def test_chance_alone_never_reaches_the_threshold() -> None:
    highest = max(-(b / 4) / 2.302585 + 2 * b**0.5 / 2 / 2.302585 for b in (0.1 * k for k in range(1, 1000)))
    assert highest == pytest.approx(0.4343, abs=1e-4)


def test_a_prediction_must_be_past_the_threshold_by_its_half_width() -> None:
    flow = chain(mlp(4, "relu", weights=1.414214 * 10**1.1, slope=0.707107))
    for half_width, alarms in ((0.1, 1), (0.5, 0)):
        rows = [replace(row, half_width=half_width) for row in flow]
        assert len(diagnose(Flow(rows, "predicted"), select=RULE).findings) == alarms
