"""The variance of a mean square, against simulated tensors."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.predict.axes import Axis, plain
from evenflow.predict.spread import _gaussian
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
