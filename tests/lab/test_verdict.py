"""Verdicts and their near misses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evenflow.lab.verdict import (
    Comparison,
    Expectation,
    Verdict,
    at_least,
    at_most,
    interval,
    near,
    number,
    plus_minus,
)

A, Q, D = Verdict.AGREES, Verdict.CANNOT_TELL, Verdict.DISAGREES


def _verdict(expected: Expectation, *samples: float, exact: bool = False) -> Verdict:
    return Comparison("q", expected, samples, exact).verdict


def _around(centre: float, reach: float) -> tuple[float, float]:
    """Two samples whose 95 % interval is centre ± reach: t(.975, 1) = 12.706, and s/√2 is half their gap."""
    half = reach / stats.t.ppf(0.975, 1)
    return centre - half, centre + half


@pytest.mark.parametrize(
    ("centre", "reach", "verdict"),
    [
        (10.0, 0.5, A),
        (10.0, 0.999, A),  # just inside on both sides
        (10.0, 1.001, Q),  # just too wide
        (10.9, 0.099, A),
        (10.9, 0.101, Q),  # reaches over the edge
        (11.2, 0.201, Q),  # barely touches
        (11.2, 0.199, D),  # barely apart
        (9.5, 0.501, Q),
        (8.0, 0.5, D),
    ],
)
def test_near(centre: float, reach: float, verdict: Verdict) -> None:
    assert _verdict(near(10.0, 1.0, "f", "s"), *_around(centre, reach)) is verdict


@pytest.mark.parametrize(
    ("centre", "verdict"), [(4.0, A), (4.899, A), (4.901, Q), (5.099, Q), (5.101, D), (9.0, D)]
)
def test_at_most(centre: float, verdict: Verdict) -> None:
    assert _verdict(at_most(5.0, "f", "s"), *_around(centre, 0.1)) is verdict
    assert _verdict(at_least(-5.0, "f", "s"), *_around(-centre, 0.1)) is verdict


def test_one_random_sample_tells_nothing_but_an_exact_one_does() -> None:
    expected = near(1.0, 0.5, "f", "s")
    assert _verdict(expected, 1.0) is Q
    assert _verdict(expected, 1.0, exact=True) is A
    assert _verdict(expected, 2.0, exact=True) is D
    assert _verdict(expected) is Q


def test_what_is_not_finite() -> None:
    expected = at_least(3.0, "f", "s")
    assert _verdict(expected, math.inf, math.inf) is A
    assert _verdict(expected, -math.inf, -math.inf) is D
    assert _verdict(expected, math.inf, 5.0) is Q
    assert _verdict(expected, math.nan, 5.0, 5.0) is Q
    assert interval((math.inf, 5.0)) is None
    assert interval((math.nan, math.nan)) is None


def test_scatter_alone_never_agrees() -> None:
    """Wide scatter around the right place overlaps the range and still cannot tell."""
    assert _verdict(near(0.0, 0.1, "f", "s"), -5.0, 5.0, -4.0, 4.0) is Q


def test_the_interval_is_students() -> None:
    rng = np.random.default_rng(0)
    samples = tuple(rng.normal(3, 2, size=7).tolist())
    expected = stats.t.interval(0.95, 6, loc=np.mean(samples), scale=stats.sem(samples))
    assert interval(samples) == pytest.approx(expected)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [interval(tuple(row)) for row in rng.normal(size=(4000, 5)).tolist()]
    hits = sum(low <= 0 <= high for low, high in filter(None, found))
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_the_worst_verdict_counts() -> None:
    assert Verdict.worst([A, A]) is A
    assert Verdict.worst([A, Q]) is Q
    assert Verdict.worst([D, Q, A]) is D
    assert Verdict.worst([]) is A


def test_numbers_as_text() -> None:
    assert plus_minus(-16.1774, 0.04028) == "−16.177 ± 0.040"
    assert plus_minus(0.0448372, 7.92e-5) == "0.044837 ± 0.000079"
    assert plus_minus(-0.0001, 0.04) == "0.000 ± 0.040"
    assert plus_minus(120.0, 35.0) == "120 ± 35"
    assert plus_minus(1.0, 1e-9) == "1 ± 1.00e−09"
    assert number(-math.inf) == "−∞"
    assert number(math.nan) == "?"
    assert number(1e-15) == "0"
    assert near(2.0, 0.06, "f", "s").text == "2.000 ± 0.060"
    assert at_most(0.25, "f", "s").text == "≤ 0.25"
    assert at_least(-3.0, "f", "s").text == "≥ −3"
    assert Comparison("q", near(0, 1, "f", "s"), (1.0,)).text == "1 (no interval from 1 seed)"
