"""Scaling laws of predictions against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from evenflow.measure import measure
from evenflow.predict import across_depth, block_law, predict
from evenflow.predict.scaling import depth_slope
from evenflow.theory import chain_profile

INPUTS = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))


def _tanh(depth: int) -> nn.Module:
    layers = [part for _ in range(depth) for part in (nn.Linear(128, 128), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(128, 128))


def _at(depth: int) -> Callable[[], nn.Module]:
    return partial(_tanh, depth)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(128, 128), nn.Linear(128, 128)
        for layer in (self.up, self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.relu(self.up(x)))
        return y


def _residual() -> nn.Module:
    return nn.Sequential(*(_Block() for _ in range(6)), nn.Linear(128, 10))


def test_totals_over_depth_are_those_of_the_closed_form() -> None:
    points = list(across_depth(_at, (5, 10, 20), INPUTS))
    for point in points:
        theory = chain_profile(
            "tanh",
            depth=point.depth + 1,
            width=128,
            sigma_w2=1 / 3,
            sigma_b2=1 / (3 * 128),
            input_mean_square=float(INPUTS.square().mean()),
        )
        assert point.total == pytest.approx(theory.log10_ratio, abs=0.05 + 0.01 * point.depth)
    # Far from the input tanh is a line: σ_w² = ⅓ per layer, −½ log10 3 of the norm.
    assert depth_slope(points) == pytest.approx(-0.5 * math.log10(3), rel=0.03)


def test_margins_follow_from_the_format() -> None:
    (point,) = across_depth(_at, (20,), INPUTS)
    assert point.margin("float16") == pytest.approx(point.log10_rms + 14 * math.log10(2))
    assert point.margin("float32") == pytest.approx(point.log10_rms + 126 * math.log10(2))


def test_the_law_of_blocks_is_that_of_residual_nets() -> None:
    # x + W₂ relu(W₁ x) with He's weights: a rate of 1 + 2 = 3, ½ log10 3 per block.
    law = block_law(predict(_residual, INPUTS))
    assert law is not None
    assert law.links == 6
    assert law.slope == pytest.approx(0.5 * math.log10(3), rel=0.02)
    assert law.residual < 0.02
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _residual()
    real = block_law(measure(model, INPUTS))
    assert real is not None
    assert real.slope == pytest.approx(law.slope, abs=0.03)
    assert real.start == pytest.approx(law.start, abs=0.1)


def test_a_net_without_repeated_blocks_has_no_law_of_blocks() -> None:
    assert block_law(predict(_at(5), INPUTS)) is None
