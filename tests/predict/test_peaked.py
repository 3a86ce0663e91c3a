"""The ratio of widely spread scores against rows simulated one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evenflow.predict.rules.peaked import SMALL_SPREAD, _simulated, effective_ratio


def simulated(n: int, full: float, rho: float, rows: int) -> tuple[float, float]:
    """Ln R and its standard error."""
    s, w = np.random.default_rng(7).standard_normal((2, rows, n))
    t = rho * s + math.sqrt(1 - rho**2) * w
    p, q = (np.exp(math.sqrt(full) * x) for x in (s, t))
    agree = (p * q).sum(1) / (p.sum(1) * q.sum(1))
    mean, error = agree.mean(), agree.std() / math.sqrt(rows)
    return math.log(mean * (n - 1) / (1 - mean)), error / mean / (1 - mean)


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("rho", [-0.5, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("full", [0.7, 2.6, 9.0])
def test_rows_simulated_afresh(n: int, rho: float, full: float) -> None:
    expected, error = simulated(n, full, rho, 40_000)
    ours = math.sqrt(error**2 * (1 + 40_000 * n / 240_000))  # our own rows are noisy too
    found = math.log(effective_ratio(n, full, np.array([rho * full]))[0])
    assert found == pytest.approx(expected, abs=4 * ours + 2e-3)


@pytest.mark.parametrize(("n", "within"), [(16, 0.02), (512, 0.01)])
def test_the_closed_form_holds_where_it_is_used(n: int, within: float) -> None:
    below = effective_ratio(n, SMALL_SPREAD, np.array([0.3, 0.1, -0.2]))
    beyond = effective_ratio(n, SMALL_SPREAD * 1.0001, np.array([0.3, 0.1, -0.2]))
    assert below == pytest.approx(beyond, rel=within)


def test_a_grid_point_is_the_simulation_itself() -> None:
    full = SMALL_SPREAD * 4
    assert effective_ratio(32, full, np.array([full, -full])) == pytest.approx(
        np.exp(_simulated(32, 8)[[0, -1]])
    )
