"""Axes of random tensors, and the classes into which pairs of their entries fall.

Two entries i, j of one axis can *agree* (i = j) or *differ*. Where an axis is
exchangeable, all agreeing pairs have the same statistics, and so have all
differing ones: two numbers describe it. An axis may be *segmented*, such as
class token and patches, early and late positions of a causal sequence, or the
query, key and value thirds of a fused projection. With S segments of n_a
entries, pairs fall into S² + S classes, in this order:

    differ (a, b), index a·S + b    n_a n_b pairs, n_a (n_a − 1) where a = b
    agree a,       index S² + a     n_a pairs

Everything that a tensor operation does to an axis (summing, slicing, splitting,
merging, cutting into finer segments) is a small matrix on these classes.

Symbols: n entries, S segments, C = S² + S classes.

References:
    D. G. Higman, "Coherent configurations", 1975: partitions of index pairs
    that are closed under matrix products; segmented exchangeability is the
    simplest family.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]

MAX_SEGMENTS = 20
"""More segments than this are joined: a table over two such axes has (S² + S)² = 176 400 classes."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: the sizes of its segments, in order."""

    sizes: tuple[int, ...]

    @property
    def n(self) -> int:
        """Number of entries."""
        return sum(self.sizes)

    @property
    def segments(self) -> int:
        """Number of segments S."""
        return len(self.sizes)

    @property
    def classes(self) -> int:
        """Number of pair classes C = S² + S."""
        return self.segments * (self.segments + 1)

    @property
    def agree(self) -> slice:
        """The classes of agreeing pairs."""
        return slice(self.segments**2, None)

    @property
    def counts(self) -> Array:
        """Pairs in each class [C]."""
        return _counts(self.sizes)

    @property
    def left(self) -> Indices:
        """Segment of the first entry of each class [C]."""
        return _sides(self.segments)[0]

    @property
    def right(self) -> Indices:
        """Segment of the second entry of each class [C]."""
        return _sides(self.segments)[1]

    @property
    def swapped(self) -> Indices:
        """The class of (j, i) for each class of (i, j) [C]."""
        return _sides(self.segments)[2]

    @property
    def weights(self) -> Array:
        """Share of the entries in each segment [S]."""
        return _weights(self.sizes)

    @property
    def shares(self) -> Array:
        """Share of all pairs in each class [C]."""
        return _shares(self.sizes)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where segments end."""
        return tuple(accumulate(self.sizes))


def plain(n: int) -> Axis:
    """An exchangeable axis of n entries."""
    return Axis((n,))


@lru_cache(maxsize=4096)
def _counts(sizes: tuple[int, ...]) -> Array:
    n = np.array(sizes, dtype=float)
    return np.concatenate([(np.outer(n, n) - np.diag(n)).ravel(), n])


@lru_cache(maxsize=4096)
def _weights(sizes: tuple[int, ...]) -> Array:
    return np.array(sizes) / sum(sizes)


@lru_cache(maxsize=4096)
def _shares(sizes: tuple[int, ...]) -> Array:
    return np.asarray(_counts(sizes) / sum(sizes) ** 2)


@lru_cache(maxsize=256)
def _sides(segments: int) -> tuple[Indices, Indices, Indices]:
    a, b = np.divmod(np.arange(segments**2), segments)
    same = np.arange(segments)
    return (
        np.concatenate([a, same]),
        np.concatenate([b, same]),
        np.concatenate([b * segments + a, segments**2 + same]),
    )


def joined(a: Axis, b: Axis) -> Axis:
    """The coarsest axis whose segments respect those of both."""
    if a.sizes == b.sizes:
        return a
    bounds = sorted({*a.bounds, *b.bounds})
    if len(bounds) > MAX_SEGMENTS:
        return a if a.segments >= b.segments else b
    return Axis(tuple(end - start for start, end in zip([0, *bounds], bounds, strict=False)))


def divisible(axis: Axis, inner: int) -> Axis:
    """The axis with its segments' ends moved, towards the middle, to multiples of ``inner``."""
    ends = {-(-end // inner) * inner if 2 * end < axis.n else end // inner * inner for end in axis.bounds}
    bounds = sorted({*ends, axis.n} - {0})
    return Axis(tuple(end - start for start, end in pairwise([0, *bounds])))


def rounded(values: Array) -> Array:
    """To 36 of 52 bits, 11 significant digits; −0 becomes 0."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    return ((bits + 0x8000) & ~0xFFFF).view(np.float64) + 0.0


def weighted(values: Array, at: int, weights: Array) -> Array:
    """Weighted sum over one axis of an array; the others stay in order."""
    before, after = values.shape[:at], values.shape[at + 1 :]
    if not after:
        return np.asarray(values @ weights)
    return (weights @ values.reshape(math.prod(before), len(weights), -1)).reshape(*before, *after)


def along(values: Array, axis: int, matrix: Array) -> Array:
    """A matrix applied to one axis of an array; the others stay in order."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    if not after:
        return values @ matrix.T
    flat = values.reshape(math.prod(before), values.shape[axis], -1)
    return (matrix @ flat).reshape(*before, len(matrix), *after)


@lru_cache(maxsize=4096)
def regroup(source: Axis, target: Axis) -> tuple[Array, Array]:
    """Matrices [C', C] on pair classes and [S', S] on segments that re-cut an axis.

    A finer cut copies, a coarser one averages over the pairs that it joins.
    """
    overlap = _overlap(source, target)
    share = overlap / np.array(target.sizes)[:, None]
    pairs = np.zeros((target.classes, source.classes))
    for row, (a, b) in enumerate(zip(target.left, target.right, strict=True)):
        agree = row >= target.segments**2
        if agree:
            pairs[row, source.agree] = share[a]
            continue
        count = np.outer(overlap[a], overlap[b])
        within = overlap[a] if a == b else np.zeros(source.segments)
        count = count - np.diag(within)
        # Two entries of one target segment may lie in one source segment, never on each other.
        total = count.sum()
        if total > 0:
            pairs[row, : source.segments**2] = (count / total).ravel()
        else:  # a segment of one entry: no such pair, any value will do
            pairs[row, source.agree] = share[a]
    return pairs, share


def _overlap(source: Axis, target: Axis) -> Array:
    """Entries that a target and a source segment share [S', S]."""
    s_end, t_end = np.array(source.bounds), np.array(target.bounds)
    s_start, t_start = s_end - np.array(source.sizes), t_end - np.array(target.sizes)
    shared = np.minimum(t_end[:, None], s_end) - np.maximum(t_start[:, None], s_start)
    overlap: Array = np.maximum(shared, 0).astype(float)
    return overlap


@lru_cache(maxsize=4096)
def split(axis: Axis, inner: int) -> tuple[Axis, Axis, Indices, Indices] | None:
    """Cut an axis into (outer, inner) factors, row-major, as ``view`` does.

    Returns:
        Both axes, and for each pair of their classes (segments) the class
        (segment) of ``axis`` that it belongs to [C_outer, C_inner] ([S_outer, 1]);
        None if segments would be cut through.
    """
    if any(size % inner for size in axis.sizes):
        return None
    outer, fine = Axis(tuple(size // inner for size in axis.sizes)), plain(inner)
    segments = axis.segments
    index = np.empty((outer.classes, 2), dtype=np.intp)
    index[:, 0] = outer.left * segments + outer.right
    index[:, 1] = index[:, 0]
    index[outer.agree, 1] = segments**2 + np.arange(segments)
    return outer, fine, index, np.arange(segments)[:, None]


@lru_cache(maxsize=4096)
def merge(outer: Axis, inner: Axis) -> tuple[Axis, Array, Array]:
    """Join two neighbouring factors into one axis, the inverse of :func:`split`.

    The segments of the outer axis stay, those of the inner one are averaged.

    Returns:
        The axis, and matrices [C, C_outer·C_inner] and [S, S_outer·S_inner].
    """
    axis = Axis(tuple(size * inner.n for size in outer.sizes))
    segments = outer.segments
    pairs = np.zeros((axis.classes, outer.classes, inner.classes))
    same = segments**2 + np.arange(segments)
    agree = inner.agree
    for c in range(segments**2):
        a, b = outer.left[c], outer.right[c]
        if outer.counts[c] > 0:
            pairs[c, c] = outer.counts[c] * inner.counts
        if a == b:
            pairs[c, same[a], : inner.segments**2] = outer.sizes[a] * inner.counts[: inner.segments**2]
        if not pairs[c].any():
            pairs[c, same[a], agree] = inner.weights
    for a in range(segments):
        pairs[same[a], same[a], agree] = inner.weights
    flat: Array = pairs.reshape(axis.classes, -1)
    means: Array = np.kron(np.eye(segments), inner.weights[None]).astype(float)
    return axis, flat / flat.sum(1, keepdims=True), means


@lru_cache(maxsize=4096)
def pick(axis: Axis, start: int, stop: int, step: int = 1) -> tuple[Axis, Indices, Indices]:
    """The axis that ``x[start:stop:step]`` leaves, with the classes and segments that it takes."""
    segment = np.searchsorted(np.array(axis.bounds), np.arange(start, stop, step), side="right")
    kept, sizes = np.unique(segment, return_counts=True)
    picked = Axis(tuple(int(size) for size in sizes))
    classes = np.concatenate(
        [
            (kept[:, None] * axis.segments + kept[None]).ravel(),
            axis.segments**2 + kept,
        ]
    )
    return picked, classes, kept


@lru_cache(maxsize=4096)
def averaging(axis: Axis) -> tuple[Array, Array]:
    """Matrices [C, C] that average a pair function over its first (second) entry, the other held fixed."""
    size, segments = np.array(axis.sizes, float), axis.segments
    # Row a: from the classes to E over j of K(i, j), for i in segment a.
    over_second = np.zeros((segments, axis.classes))
    for a in range(segments):
        over_second[a, a * segments + np.arange(segments)] = size / axis.n
        over_second[a, a * segments + a] -= 1 / axis.n
        over_second[a, segments**2 + a] = 1 / axis.n
    over_first = over_second[:, axis.swapped]
    return over_first[axis.right], over_second[axis.left]


def agreeing(axes_of: Sequence[Axis], at: Iterable[int]) -> npt.NDArray[np.bool_]:
    """Which pair classes [C_1, …, C_A] agree on the axes at some positions."""
    found = np.ones([axis.classes for axis in axes_of], dtype=bool)
    for position in at:
        agree = np.zeros(axes_of[position].classes, dtype=bool)
        agree[axes_of[position].agree] = True
        found &= agree.reshape([-1 if i == position else 1 for i in range(found.ndim)])
    return found
