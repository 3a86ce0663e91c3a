"""Axes against enumeration of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.predict import axes
from evenflow.predict.axes import Axis

AXES = [Axis((6,)), Axis((1, 5)), Axis((2, 1, 3))]


def classes_of(axis: Axis) -> np.ndarray:
    """The class of every pair (i, j), by the definition."""
    segment = np.repeat(np.arange(axis.segments), axis.sizes)
    found = segment[:, None] * axis.segments + segment[None]
    found[np.diag_indices(axis.n)] = axis.segments**2 + segment
    return found


def kernel(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Random values by class, and the matrix over all pairs that they describe."""
    values = np.random.default_rng(0).standard_normal(axis.classes)
    return values, values[classes_of(axis)]


def by_class(matrix: np.ndarray, axis: Axis) -> np.ndarray:
    """Average of a matrix over the pairs of each class; NaN where there are none."""
    classes = classes_of(axis)
    return np.array(
        [matrix[classes == c].mean() if (classes == c).any() else np.nan for c in range(axis.classes)]
    )


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    real = ~np.isnan(expected)
    assert real.any()
    np.testing.assert_allclose(found[real], expected[real], atol=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_counts(axis: Axis) -> None:
    classes = classes_of(axis)
    assert axis.counts.tolist() == [(classes == c).sum() for c in range(axis.classes)]


@pytest.mark.parametrize("axis", AXES)
def test_swapped_class_is_that_of_the_transposed_pair(axis: Axis) -> None:
    values, matrix = kernel(axis)
    agree(values[axis.swapped], by_class(matrix.T, axis))


@pytest.mark.parametrize("source", AXES)
@pytest.mark.parametrize("target", AXES)
def test_regroup_averages_over_pairs(source: Axis, target: Axis) -> None:
    values, matrix = kernel(source)
    pairs, _ = axes.regroup(source, target)
    agree(pairs @ values, by_class(matrix, target))


def test_joined_respects_both() -> None:
    assert axes.joined(Axis((2, 4)), Axis((3, 3))) == Axis((2, 1, 3))


@pytest.mark.parametrize(("axis", "inner"), [(Axis((6,)), 2), (Axis((2, 4)), 2), (Axis((6,)), 3)])
def test_split_gives_the_class_in_the_whole(axis: Axis, inner: int) -> None:
    cut = axes.split(axis, inner)
    assert cut is not None
    outer, fine, index, _ = cut
    whole = classes_of(axis).reshape(outer.n, inner, outer.n, inner)
    for o in range(outer.classes):
        for f in range(fine.classes):
            at_outer, at_fine = classes_of(outer) == o, classes_of(fine) == f
            found = whole.transpose(0, 2, 1, 3)[at_outer][:, at_fine]
            if found.size:
                assert (found == index[o, f]).all()


def test_split_refuses_to_cut_through_segments() -> None:
    assert axes.split(Axis((1, 5)), 2) is None


@pytest.mark.parametrize(
    ("outer", "inner"), [(Axis((3,)), Axis((2,))), (Axis((1, 2)), Axis((3,))), (Axis((3,)), Axis((1, 2)))]
)
def test_merge_averages_over_pairs(outer: Axis, inner: Axis) -> None:
    values = np.random.default_rng(1).standard_normal((outer.classes, inner.classes))
    matrix = values[classes_of(outer)[:, None, :, None], classes_of(inner)[None, :, None, :]]
    axis, pairs, _ = axes.merge(outer, inner)
    agree(pairs @ values.ravel(), by_class(matrix.reshape(axis.n, axis.n), axis))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("part", [(0, 1, 1), (1, 6, 1), (0, 6, 2), (2, 5, 1)])
def test_pick(axis: Axis, part: tuple[int, int, int]) -> None:
    values, matrix = kernel(axis)
    picked, classes, _ = axes.pick(axis, *part)
    agree(values[classes], by_class(matrix[slice(*part), slice(*part)], picked))


@pytest.mark.parametrize("axis", AXES)
def test_averaging(axis: Axis) -> None:
    values, matrix = kernel(axis)
    first, second = axes.averaging(axis)
    agree(first @ values, by_class(np.broadcast_to(matrix.mean(0)[None], matrix.shape), axis))
    agree(second @ values, by_class(np.broadcast_to(matrix.mean(1)[:, None], matrix.shape), axis))
