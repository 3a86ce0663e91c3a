"""Stats: exact merging, and what float formats would lose."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.flow import FORMATS, Exponents, Stats

exponents = st.builds(
    lambda low, counts: Exponents.from_dense(low, np.array(counts, dtype=np.int64)),
    st.integers(-160, 120),
    st.lists(st.integers(0, 5), max_size=12),
)


def dense(e: Exponents) -> dict[int, int]:
    return {e.low + k: count for k, count in enumerate(e.counts) if count}


@given(exponents, exponents)
def test_merged_exponents_add_bin_by_bin(a: Exponents, b: Exponents) -> None:
    expected = {key: dense(a).get(key, 0) + dense(b).get(key, 0) for key in dense(a) | dense(b)}
    assert dense(a.merge(b)) == expected
    assert a.merge(b) == b.merge(a)
    assert a.merge(Exponents()) == a


@given(exponents, st.integers(-170, 130))
def test_below_and_above_split_the_histogram(e: Exponents, at: int) -> None:
    assert e.below(at) == sum(count for key, count in dense(e).items() if key < at)
    assert e.above(at) == sum(count for key, count in dense(e).items() if key > at)
    assert e.below(at) + dense(e).get(at, 0) + e.above(at) == e.total


def test_formats_are_those_of_numpy_and_torch() -> None:
    import torch

    for name, expected in FORMATS.items():
        limits = torch.finfo(getattr(torch, name))
        assert math.log2(limits.tiny) == expected.min_normal
        assert math.frexp(limits.max)[1] - 1 == expected.max_exponent
        assert math.log2(limits.smallest_normal * limits.eps) == expected.min_subnormal


def test_fractions_that_a_format_loses() -> None:
    # One entry each at 2^-30, 2^-20, 2^-10, 2^0 and 2^20; one zero.
    histogram = np.zeros(51, dtype=np.int64)
    histogram[[0, 10, 20, 30, 50]] = 1
    stats = Stats(6, 0.0, 1.0, 2.0**20, 1, 0, Exponents.from_dense(-30, histogram))
    assert stats.underflow_fraction("float16") == 1 / 5
    assert stats.subnormal_fraction("float16") == 2 / 5
    assert stats.overflow_fraction("float16") == 1 / 5
    assert stats.underflow_fraction("bfloat16") == stats.overflow_fraction("float32") == 0
    assert Stats(6, 0.0, 1.0).underflow_fraction("float16") is None


def test_moments_of_a_known_set() -> None:
    stats = Stats(count=5, mean=3.0, mean_square=12.5, abs_max=4.0, zero_count=0, nonfinite_count=1)
    assert stats.rms == pytest.approx(math.sqrt(12.5))
    assert stats.std == pytest.approx(math.sqrt(3.5))
    assert stats.norm == pytest.approx(math.sqrt(50.0))
    assert stats.log10_norm == pytest.approx(math.log10(math.sqrt(50.0)))
    assert stats.zero_fraction == 0.0
    assert Stats(3, 0.0, 0.0).log10_norm == -math.inf


def test_what_one_side_does_not_know_stays_unknown() -> None:
    known, unknown = Stats(2, 1.0, 1.0, 1.0, 0, 0, Exponents(0, (2,))), Stats(2, 3.0, 9.0)
    merged = known.merge(unknown)
    assert (merged.abs_max, merged.zero_count, merged.exponents) == (None, None, None)
    assert (merged.count, merged.mean, merged.mean_square) == (4, 2.0, 5.0)


def test_a_part_without_finite_entries_does_not_spoil_the_mean() -> None:
    empty = Stats(3, math.nan, math.nan, 0.0, 0, nonfinite_count=3)
    assert Stats(2, 1.0, 1.0, 1.0, 0).merge(empty).mean == 1.0


def test_merging_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="got nothing to merge: pass at least one Stats"):
        Stats.merge_all([])
