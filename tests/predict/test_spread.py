"""The interval of a prediction, against nets drawn many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict
from evenflow.predict.spread import NORMAL_95


def _stated_and_true(build: Callable[[], nn.Module], x: Tensor, loss: Any, name: str) -> tuple[float, float]:
    """Standard deviation of log10 RMS of a parameter's gradient, as stated and over 60 draws."""
    role = Role.PARAMETER_GRADIENT
    (row,) = [row for row in predict(build, x, loss).select(role) if row.site.label == name]
    assert row.half_width is not None
    levels = []
    for seed in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        rows = [r for r in measure(model, x, loss).select(role) if r.site.label == name]
        levels += [r.stats.log10_rms for r in rows if r.stats is not None]
    return row.half_width / NORMAL_95, float(np.std(levels, ddof=1))


@pytest.mark.parametrize("name", ["2.weight", "4.bias"])
def test_a_mean_over_places_that_is_three_numbers(name: str) -> None:
    """Features with a mean make three channels alike everywhere: three numbers under the target's noise."""
    noise = torch.Generator().manual_seed(0)
    x, target = torch.randn(8, 16, 6, 6, generator=noise), torch.randn(8, 3, 6, 6, generator=noise)

    def build() -> nn.Module:
        widths = (16, 64, 64, 3)
        layers = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Conv2d(a, b, 1), nn.Softplus())
        ]
        return nn.Sequential(*layers[:-1])

    stated, true = _stated_and_true(build, x, lambda y: nn.functional.mse_loss(y, target), name)
    assert stated == pytest.approx(true, rel=0.3)


def test_a_sum_of_what_has_nothing_in_common() -> None:
    """Gradients of different samples that are independent average out in the sum."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    build = lambda: nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128))  # noqa: E731
    stated, true = _stated_and_true(build, x, lambda y: (y * target).sum(), "0.weight")
    assert true < stated < 0.05


DEPTH, WIDTH, SEEDS = 10, 96, 48
LABELS = torch.randint(10, (24,), generator=torch.Generator().manual_seed(3))
BATCH = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0))


def _net(activation: type[nn.Module], fill: Callable[[Tensor], Any] | None) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
        if fill is not None:
            fill(layers[-2].weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


@pytest.mark.parametrize("role", [Role.PARAMETER_GRADIENT, Role.ACTIVATION_GRADIENT, Role.ACTIVATION])
@pytest.mark.parametrize(
    ("activation", "fill", "most"),
    [
        (nn.Tanh, None, 1.25),  # its head knows the labels, and hardly anything else
        (nn.ReLU, nn.init.xavier_uniform_, 1.25),  # masks that all samples share
        (nn.GELU, nn.init.kaiming_normal_, 1.25),  # logits follow the length of what they come from
        (nn.Tanh, nn.init.orthogonal_, 1.6),  # were its weights independent, it would be 2.9
    ],
)
def test_deep_nets(
    activation: type[nn.Module], fill: Callable[[Tensor], Any] | None, most: float, role: Role
) -> None:
    """Stated against true standard deviation where draws differ by .03 or more, median over tensors."""
    loss = lambda y: F.cross_entropy(y, LABELS)  # noqa: E731
    build = lambda: _net(activation, fill)  # noqa: E731
    predicted = {row.site: row.half_width for row in predict(build, BATCH, loss).select(role)}
    levels: dict[Any, list[float]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        for row in measure(build(), BATCH, loss).select(role):
            if row.stats is not None:
                levels.setdefault(row.site, []).append(row.stats.log10_rms)
    pairs = [((predicted[site] or 0.0) / NORMAL_95, np.std(v, ddof=1)) for site, v in levels.items()]
    ratios = [stated / true for stated, true in pairs if true > 0.03]
    if ratios:
        assert 0.75 < np.median(ratios) < most
    assert all(stated < 0.05 for stated, true in pairs if true < 0.01)
