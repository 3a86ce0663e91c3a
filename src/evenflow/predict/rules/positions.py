"""Linear maps of positions: the taps of a convolution, the windows of a pool, the copies of an upsampling.

Such a map takes the n entries of one spatial dimension to m others,
y_p = Σ_q A_pq x_q. On pair tables it is a matrix from pair classes to pair classes,

    K_y[c'] = mean over (p, p') in c' of Σ_qq' A_pq A_p'q' K_x[class of (q, q')],

and a convolution, whose weights at different taps are independent, is the sum of
the matrices of its taps. Zero padding makes positions at the border different:
fewer taps meet the input there, what they read is smaller itself, and so it goes on
from layer to layer. Hence the border positions are segments of their own.

A transposed convolution of stride s, and the gradient of a strided one, makes its
outputs p = s q + r by other taps for each phase r: those of unlike phase have nothing in
common, those of like phase all that their inputs have. Such a dimension has the axes
(q, r). So in the images of a DCGAN generator the pixels of a phase have a mean that all
pixels together have not, and the norms of a critic, whose taps read one phase each, take it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby, pairwise

import numpy as np

from evenflow.predict.axes import Array, Axis, along, plain
from evenflow.predict.table import Table

BORDER = 2
"""Positions from either end that may be segments of their own. A plain CNN of eight layers
on 16² pixels is .13 decades off with 0, .03 with 1 and .002 with 2 (against 3)."""
MOST_PHASED = 512
"""Positions up to which those of different phase are told apart: each pair of them is looked at once."""


class Map:
    """A sparse matrix A [outputs, inputs].

    Args:
        outputs: m.
        inputs: n.
        entries: Row, column and value of what is not zero.
    """

    def __init__(self, outputs: int, inputs: int, entries: tuple[Array, Array, Array]) -> None:
        self.outputs, self.inputs = outputs, inputs
        self.rows, self.columns = (np.asarray(index, dtype=np.intp) for index in entries[:2])
        self.values = np.asarray(entries[2], dtype=float)

    @property
    def transposed(self) -> Map:
        """Aᵀ."""
        return _transposed(self)

    def by_segments(self, source: Axis) -> Array:
        """Σ of each row over the segments of the inputs [m, S]."""
        found = np.zeros((self.outputs, source.segments))
        np.add.at(found, (self.rows, _segment(source)[self.columns]), self.values)
        return found


@lru_cache(maxsize=1024)
def _transposed(forward: Map) -> Map:
    return Map(forward.inputs, forward.outputs, (forward.columns, forward.rows, forward.values))  # type: ignore[arg-type]


Maps = tuple[Map, ...]


@lru_cache(maxsize=1024)
def taps(inputs: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Maps:
    """From inputs to outputs, one map for each tap of a convolution."""
    found = []
    for tap in range(kernel):
        column = np.arange(outputs) * stride - padding + tap * dilation
        row = np.flatnonzero((column >= 0) & (column < inputs))
        found.append(Map(outputs, inputs, (row, column[row], np.ones(len(row)))))  # type: ignore[arg-type]
    return tuple(found)


@lru_cache(maxsize=1024)
def windows(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int, *, count_padding: bool = True
) -> Maps:
    """The mean of each window."""
    start = np.arange(outputs) * stride - padding
    return _means(inputs, start, start + kernel, kernel if count_padding else None)


@lru_cache(maxsize=1024)
def shares(inputs: int, outputs: int) -> Maps:
    """The mean of each of ``outputs`` windows that share out the inputs."""
    i = np.arange(outputs)
    return _means(inputs, i * inputs // outputs, -(-(i + 1) * inputs // outputs), None)


def _means(inputs: int, start: np.ndarray, end: np.ndarray, divisor: int | None) -> Maps:
    low, high = np.maximum(start, 0), np.minimum(end, inputs)
    length = high - low
    row = np.repeat(np.arange(len(start)), length)
    column = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
    value = 1.0 / (length[row] if divisor is None else np.full(len(row), divisor))
    return (Map(len(start), inputs, (row, column, value)),)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def copies(inputs: int, outputs: int) -> Maps:
    """Nearest neighbours."""
    row = np.arange(outputs)
    return (Map(outputs, inputs, (row, row * inputs // outputs, np.ones(outputs))),)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def backward(maps: Maps) -> Maps:
    """The transposed maps."""
    return tuple(each.transposed for each in maps)


def _segment(axis: Axis) -> np.ndarray:
    return np.repeat(np.arange(axis.segments), axis.sizes)


@lru_cache(maxsize=4096)
def cut(maps: Maps, source: Axis, apart: int = 1) -> Axis:
    """The axis of the outputs, ``apart`` of them together: those that meet inputs alike form a segment."""
    m = maps[0].outputs // apart
    met = np.sum([each.by_segments(source) for each in maps], 0).reshape(m, -1)
    border = max(BORDER // apart, 1)
    runs = [len(list(run)) for _, run in groupby(np.round(met, 9).tolist())]
    ends = {0, m}
    for place in accumulate(runs):
        if place <= border or m - place <= border:
            ends.add(place)
    bounds = sorted(ends)
    return Axis(tuple(b - a for a, b in pairwise(bounds)))


@lru_cache(maxsize=4096)
def matrices(maps: Maps, source: Axis, target: Axis) -> tuple[Array, Array]:
    """Σ over maps of the matrices on pair classes [C', C], and on segments [S', S]."""
    total: Array = np.sum([_pairs(each, source, target) for each in maps], 0)
    pairs = total / np.maximum(target.counts, 1.0)[:, None]
    # A segment of one entry has no differing pairs: any value will do, that of the agreeing ones is tame.
    for a in np.flatnonzero(np.array(target.sizes) == 1):
        pairs[a * target.segments + a] = pairs[target.segments**2 + a]
    means: Array = np.sum([_sums(target, each.by_segments(source)) for each in maps], 0)
    return pairs, means / np.array(target.sizes, float)[:, None]


def _sums(axis: Axis, values: Array) -> Array:
    return np.add.reduceat(values, np.concatenate([[0], np.cumsum(axis.sizes)[:-1]]).astype(np.intp), axis=0)


@lru_cache(maxsize=4096)
def _pairs(each: Map, source: Axis, target: Axis) -> Array:
    """Σ over the output pairs of a class of Σ_qq' A_pq A_p'q' [class of (q, q')]."""
    S, T = source.segments, target.segments
    row_segment, column_segment = _segment(target)[each.rows], _segment(source)[each.columns]
    by_row = each.by_segments(source)  # [m, S]
    by_column = np.zeros((T, each.inputs))  # Σ_p∈a A_pq
    np.add.at(by_column, (row_segment, each.columns), each.values)
    total = _sums(target, by_row)  # [T, S]
    both = np.einsum("ai,bj->abij", total, total)  # all pairs of rows, all pairs of columns
    same_column = _sums(source, np.einsum("aq,bq->qab", by_column, by_column))  # [S, T, T]
    same_row = _sums(target, np.einsum("pi,pj->pij", by_row, by_row))  # [T, S, S]
    same_both = np.zeros((T, S))
    np.add.at(same_both, (row_segment, column_segment), each.values**2)
    found = np.zeros((target.classes, source.classes))
    i = np.arange(S)
    for c in range(target.classes):
        a, b = target.left[c], target.right[c]
        if c >= T * T:
            every, agree = same_row[a], same_both[a]
        else:
            every, agree = both[a, b], same_column[:, a, b]
            if a == b:
                every, agree = every - same_row[a], agree - same_both[a]
        differ = every.copy()
        differ[i, i] -= agree
        found[c] = np.concatenate([differ.ravel(), agree])
    return found


def phases(maps: Maps) -> int:
    """How many phases the outputs have: s for the taps of a transposed convolution of stride s, else 1."""
    step = 0
    for each in maps:
        step = math.gcd(step, *np.diff(np.unique(each.rows)).tolist())
    outputs = maps[0].outputs
    return step if step > 1 and outputs % step == 0 and step < outputs <= MOST_PHASED else 1


def class_count(axes_of: Sequence[Axis]) -> int:
    """Pair classes of a dimension."""
    return math.prod(axis.classes for axis in axes_of)


@lru_cache(maxsize=256)
def _labels(axes_of: tuple[Axis, ...]) -> np.ndarray:
    """The class of each pair of entries of a dimension [n, n]."""
    found = np.zeros((1, 1), dtype=np.intp)
    for axis in axes_of:
        segment = _segment(axis)
        mine = segment[:, None] * axis.segments + segment
        np.fill_diagonal(mine, axis.segments**2 + segment)
        n = len(found) * axis.n
        found = (found[:, None, :, None] * axis.classes + mine[None, :, None, :]).reshape(n, n)
    return found


@lru_cache(maxsize=4096)
def pairs_of(each: Map, source: tuple[Axis, ...], target: tuple[Axis, ...]) -> Array:
    """As :func:`_pairs`, of dimensions of several axes."""
    if len(source) == len(target) == 1:
        return _pairs(each, source[0], target[0])
    before, after = class_count(source), class_count(target)
    of_rows, of_columns = (
        _labels(axes_of)[index[:, None], index]
        for axes_of, index in ((target, each.rows), (source, each.columns))
    )
    weights = np.outer(each.values, each.values)
    found = np.bincount(
        (of_rows * before + of_columns).ravel(), weights=weights.ravel(), minlength=after * before
    )
    return found.astype(np.float64).reshape(after, before)


def mapped(table: Table, dim: int, maps: Maps) -> Table:
    """The table after a dimension went through the sum of independent maps."""
    if len(table.dims[dim]) != 2 or max(maps[0].inputs, maps[0].outputs) > MOST_PHASED:
        table = with_axis(table, dim)
    source, apart = table.dims[dim], phases(maps)
    if len(source) == 1 and apart == 1:
        target = cut(maps, source[0])
        pairs, means = matrices(maps, source[0], target)
        result = table.along(table.first_axis(dim), pairs, means, table.with_dim(dim, [target]))
        return without_trivial(result, dim)
    goal = (cut(maps, _whole(source), apart), *([plain(apart)] if apart > 1 else []))
    at = table.first_axis(dim)
    pairs, means = _matrices_of(maps, source, goal)
    second = _along(table.second, at, pairs, len(source), [axis.classes for axis in goal])
    mean = table.mean
    if mean is not None:
        mean = _along(mean, at, means, len(source), [axis.segments for axis in goal])
    return without_trivial(Table(table.with_dim(dim, goal), second, mean), dim)


def _along(values: Array, at: int, matrix: Array, count: int, shape: Sequence[int]) -> Array:
    """A matrix applied to ``count`` axes of an array together, which become axes of another shape."""
    before, after = values.shape[:at], values.shape[at + count :]
    return along(values.reshape(*before, -1, *after), at, matrix).reshape(*before, *shape, *after)


def _whole(axes_of: Sequence[Axis]) -> Axis:
    """The entries of a dimension by the segments of its outermost axis."""
    inner = math.prod(axis.n for axis in axes_of[1:])
    return Axis(tuple(size * inner for size in axes_of[0].sizes))


@lru_cache(maxsize=1024)
def _matrices_of(maps: Maps, source: tuple[Axis, ...], target: tuple[Axis, ...]) -> tuple[Array, Array]:
    """As :func:`matrices`, of dimensions of several axes."""
    counts, outer = np.ones(1), target[0]
    for axis in target:
        counts = np.outer(counts, axis.counts).ravel()
    total: Array = np.sum([pairs_of(each, source, target) for each in maps], 0)
    pairs = total / np.maximum(counts, 1.0)[:, None]
    by_outer = pairs.reshape(outer.classes, -1, pairs.shape[1])
    for a in np.flatnonzero(np.array(outer.sizes) == 1):  # as there
        by_outer[a * outer.segments + a] = by_outer[outer.segments**2 + a]
    inputs, outputs = _whole(source), _whole(target)
    means: Array = np.sum([_sums(outputs, each.by_segments(inputs)) for each in maps], 0)
    return pairs, means / np.array(outputs.sizes, float)[:, None]


def with_axis(table: Table, dim: int) -> Table:
    """The dimension as one axis, also where its size is 1."""
    table = table.single(dim)
    if table.dims[dim]:
        return table
    at = table.first_axis(dim)
    mean = None if table.mean is None else np.expand_dims(table.mean, at)
    return Table(table.with_dim(dim, [plain(1)]), np.stack([table.second] * 2, at), mean)


def without_trivial(table: Table, dim: int) -> Table:
    """An axis of one entry dropped."""
    if table.dims[dim] != (plain(1),):
        return table
    at = table.first_axis(dim)
    mean = None if table.mean is None else np.take(table.mean, 0, at)
    return Table(table.with_dim(dim, []), np.take(table.second, 1, at), mean)
