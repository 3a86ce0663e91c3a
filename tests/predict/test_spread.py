"""The variance of a mean square, against simulated tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict
from evenflow.predict.axes import Axis, plain
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Leaf
from evenflow.predict.scalar import VARIABLE, Scalar
from evenflow.predict.spread import NORMAL_95, _exponent, _gaussian, own
from evenflow.predict.table import Table


@pytest.mark.parametrize(("mean", "shared"), [(0.0, 0.0), (0.0, 0.5), (1.0, 0.3)])
def test_one_tensor(mean: float, shared: float) -> None:
    """Entries that have a mean, or a part in common: 2 c² + 4 m² c, averaged over pairs."""
    n = 40
    table = Table(((plain(n),),), np.array([mean**2 + shared, mean**2 + 1.0]), np.array([mean]))
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((40_000, 1)), rng.standard_normal((40_000, n))
    squares = ((mean + np.sqrt(shared) * common + np.sqrt(1 - shared) * own) ** 2).mean(1)
    assert _gaussian(table, None) == pytest.approx(squares.var() / squares.mean() ** 2, rel=0.05)


def test_one_place_that_has_it_all() -> None:
    """Only the first of 65 tokens has a gradient: features of one token average as ever, 2/d."""
    d, tokens = 64, Axis((1, 64))
    second = np.zeros((tokens.classes, 2))
    second[tokens.segments**2, 1] = 1.0
    table = Table(((tokens,), (plain(d),)), second, np.zeros((2, 1)))
    assert _gaussian(table, (1,)) == pytest.approx(2 / d)


def test_places_that_differ_are_no_chance() -> None:
    """A small border is small in every draw: independent entries of variance v give 2 Σ v² / (Σ v)²."""
    axis = Axis((10, 30))
    variance = np.array([0.25, 1.0])
    second = np.zeros(axis.classes)
    second[axis.agree] = variance
    table = Table(((axis,),), second, np.zeros(2))
    v = np.repeat(variance, axis.sizes)
    assert _gaussian(table, None) == pytest.approx(2 * (v**2).sum() / v.sum() ** 2)


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


def test_one_over_the_size_of_a_norm() -> None:
    """(Σ x²)^(−3/2) at 64 features; from a Gaussian in its place, whose tail comes near zero, β was 2e7."""
    n, rows = 64, 8
    squares = np.random.default_rng(0).chisquare(n, (100_000, rows))
    true = np.log((squares**-3.0).mean(1)).var()
    table = Table(((plain(rows),),), np.array([float(n**2), n**2 + 2.0 * n]), np.array([float(n)]))
    field = Leaf(table, cotangent=True)
    power = Scalar(torch.pow, (Scalar(torch.add, (VARIABLE, 1e-6)), -1.5))
    assert own(Expression((rows,), [Term(1.0, ((field, power),))])) == pytest.approx(true, rel=0.25)


def test_sizes_of_norms_that_differ_from_place_to_place() -> None:
    """(Σ x² + ε)^(−3/2) where two of 32 places are ten times as large, against drawn Σ x².

    Counted as spread, that difference brought the Gaussian to −ε, and the exponent was 6 in Mixtral.
    """
    means, freedom, eps = np.array([10.0, 1.0]), 200, 0.05
    second = np.concatenate([np.outer(means, means).ravel(), means**2 * (1 + 2 / freedom)])
    field = Leaf(Table(((Axis((2, 30)),),), second, means))
    power = Scalar(torch.pow, (Scalar(torch.add, (VARIABLE, eps)), -1.5))
    drawn = np.repeat(means, [2, 30]) * np.random.default_rng(0).chisquare(freedom, (4_000, 32)) / freedom
    low, high = (float(((drawn * scale**0.5 + eps) ** -3).mean()) for scale in (0.99, 1.01))
    true = (np.log(high) - np.log(low)) / np.log(1.01 / 0.99)
    assert -1.5 < true < -1.4
    assert _exponent(field, power) == pytest.approx(true, rel=0.01)
