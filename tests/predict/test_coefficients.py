"""Vectors that share rows, against plain arrays."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.predict.coefficients import LIMIT, Coefficients, added


def test_what_shares_a_row_does_not_see_what_others_write() -> None:
    """A thousand random steps, each on any of the vectors so far; all are right at the end."""
    rng = np.random.default_rng(0)
    found, want = [Coefficients.of([])], [np.zeros(60)]
    for _ in range(1000):
        i, j = rng.integers(len(found), size=2)
        kind = rng.integers(4)
        if kind == 0:
            factor = rng.normal()
            found.append(found[i].times(factor))
            want.append(want[i] * factor)
        elif kind == 1:
            found.append(added([found[i], found[j]]))
            want.append(want[i] + want[j])
        else:  # twice as often, and mostly at the end
            at, value = int(np.clip(found[i].size + rng.integers(-2, 2), 0, 59)), rng.normal()
            found.append(found[i].plus(value, at))
            want.append(want[i] + value * (np.arange(60) == at))
    for vector, array in zip(found, want, strict=True):
        scale = max(float(np.abs(array).max()), 1e-30)
        assert vector.array == pytest.approx(array[: vector.size], abs=1e-5 * scale)
        assert not array[vector.size :].any()
        assert vector.dot(vector) == pytest.approx(array @ array, rel=1e-4)


def test_a_chain_keeps_one_row() -> None:
    """A multiple and an entry more at each step take no new memory but for growth."""
    x, rows = Coefficients.of([1.0]), {}
    for at in range(1, 100):
        x = x.times(0.9).plus(1.0, at)
        rows[id(x._row)] = x._row  # held, so that no other takes its id
    assert len(rows) <= 2
    assert x.array == pytest.approx(0.9 ** np.arange(99, -1, -1), rel=1e-5)


@pytest.mark.parametrize("factor", [0.0, 1e-3 / LIMIT, -1e3 * LIMIT])
def test_scales_that_single_precision_cannot_take_up(factor: float) -> None:
    """Such a vector gets a row of its own."""
    x = Coefficients.of([1.0, 2.0]).times(factor).plus(1.0, 2)
    assert x.array == pytest.approx([factor, 2 * factor, 1.0])
    assert x[1] == pytest.approx(2 * factor)
    assert x[7] == 0.0
