"""The variance of a mean square from the size of a tensor, against simulated tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from evenflow.flow import Role
from evenflow.predict import predict
from evenflow.predict.axes import Axis, plain
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Leaf, Made, Sum
from evenflow.predict.samples import _gaussian, exponent, features, own, own_of_sample, own_of_sum
from evenflow.predict.scalar import VARIABLE, Scalar
from evenflow.predict.spread import NORMAL_95
from evenflow.predict.table import Table, independent

RELU = Scalar(torch.relu, (VARIABLE,))


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
    assert exponent(field, power)[0] == pytest.approx(true, rel=0.01)


def _batch(samples: int, n: int, cosine: float) -> tuple[Table, np.ndarray]:
    """Gaussian samples of n features with that cosine, as a table and 20000 times drawn."""
    table = Table(((plain(samples),), (plain(n),)), np.array([[0.0, cosine], [0.0, 1.0]]), np.zeros((1, 1)))
    rng = np.random.default_rng(0)
    common = rng.standard_normal((20_000, 1, n))
    return table, np.sqrt(cosine) * common + np.sqrt(1 - cosine) * rng.standard_normal((20_000, samples, n))


@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rectified", [False, True])
def test_sums_and_samples(cosine: float, rectified: bool) -> None:
    """A gradient times a mask that it does not know: of the batch, of one sample, and of the sum over it."""
    samples, n = 6, 40
    table, drawn = _batch(samples, n, cosine)
    g = Leaf(table, cotangent=True)
    functions: tuple[tuple[Leaf, Scalar], ...] = ((g, VARIABLE),)
    if rectified:
        h, before = Leaf(table), np.random.default_rng(1).permutation(drawn)
        functions = ((g, VARIABLE), (h, Scalar(torch.sign, (RELU,))))
        drawn = drawn * (before > 0)
    field = Expression((samples, n), [Term(1.0, functions)])
    true = [
        float((x.mean(tuple(range(1, x.ndim)))).var() / x.mean() ** 2)
        for x in (drawn**2, drawn[:, 0] ** 2, drawn.sum(1) ** 2)
    ]
    assert own(field) == pytest.approx(true[0], rel=0.1)
    assert own_of_sample(field) == pytest.approx(true[1], rel=0.1)
    # fourth moments of a sum are bounded by those of the batch, and reached at both ends
    assert own_of_sum(field, (0,)) == pytest.approx(true[2], rel=0.1 if cosine in (0.0, 1.0) else 0.35)


def test_features_of_a_sample_in_few_directions() -> None:
    """Two blocks of equal entries count as two."""
    table = Table(((plain(4),), (plain(2), plain(8))), np.zeros((2, 2, 2)), np.zeros((1, 1, 1)))
    table.second[1, 1, :] = 1.0
    assert features(Leaf(table, cotangent=True)) == pytest.approx(2)


def test_what_is_known_is_no_chance() -> None:
    """y + r with known y, of which the table knows only the average: cov(x²) is that of y² + 2 y r + r²."""
    rng = np.random.default_rng(0)
    y = rng.choice([-1.0, 1.0], 40)
    known = Leaf(independent((40,), 1.0), torch.from_numpy(y))
    noise = Leaf(independent((40,), 0.25))
    product = Made((40,), (noise, Leaf(independent((), 0.0, 1.0))), lambda t, _: t, ("same",))
    field = Sum((40,), [(1.0, known), (1.0, product)])
    squares = ((y + 0.5 * rng.standard_normal((20_000, 40))) ** 2).mean(1)
    assert own(field) == pytest.approx(squares.var() / squares.mean() ** 2, rel=0.1)
    assert own(Sum((40,), [(1.0, product), (1.0, noise)])) == pytest.approx(2 / 40)  # nothing known


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 24), (24, 48), (48, 24)])
@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh])
def test_an_orthogonal_matrix_keeps_lengths(inputs: int, outputs: int, activation: type[nn.Module]) -> None:
    """|W x|² of a vector, and |tanh(W x)|², over 4000 orthogonal W."""
    x = torch.randn(1, inputs, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(torch.randn(4000, *sorted((inputs, outputs), reverse=True))).Q
    y = activation()(x @ (q if outputs < inputs else q.transpose(1, 2)) * 1.0)
    levels = y.square().mean((1, 2)).log()

    def build() -> nn.Module:
        layer = nn.Linear(inputs, outputs, bias=False)
        nn.init.orthogonal_(layer.weight)
        return nn.Sequential(layer, activation())

    rows = [row for row in predict(build, x).select(Role.ACTIVATION) if row.half_width is not None]
    half = (rows[-1].half_width or 0.0) * 2 * math.log(10)  # 1.96 √β + β/2
    root = math.sqrt(NORMAL_95**2 + 2 * half) - NORMAL_95
    assert root**2 == pytest.approx(float(levels.var()), rel=0.25, abs=1e-6)
