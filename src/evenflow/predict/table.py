"""Pair tables: what is known of a random tensor.

Of a tensor x whose weights and data are random we keep its mean and its second
moments over pairs of entries,

    m[s] = E x_i,   K[c] = E x_i x_j,

where i and j run over the entries whose axes fall into the segments s (pair
classes c) of :mod:`evenflow.predict.axes`. For a batch of B samples with D
exchangeable features K has 2 × 2 numbers: mean square (both axes agree),
correlation of samples (features agree), correlation of features (samples
agree), and the rest. This carries what a scalar variance loses, and what norms,
attention, pooling and parameter gradients depend on.

A dimension is a tuple of axes, outermost first, so ``view(B * T, D)`` keeps B
and T apart; a dimension of size 1 has no axis. Linear operations are exact on
these tables. The table of two *different* tensors, E x_i y_j, has the same
form; its ``mean`` is None.

Symbols: A axes; K has shape (C_1, …, C_A), m has (S_1, …, S_A).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch

from evenflow.predict import axes
from evenflow.predict.axes import Array, Axis, Indices, plain
from evenflow.predict.lazy import cached_property

Dims: TypeAlias = tuple[tuple[Axis, ...], ...]

NEGLIGIBLE = 1e-10
"""A sum this small against its own terms is a cancellation, hence an exact zero:
double rounding leaves 1e-16 per term, quadrature 1e-12."""
MAX_AXES = 9
"""More axes than this are merged: 2^9 classes is what a table may cost."""


@dataclass(frozen=True)
class Table:
    """Means and second moments of a tensor.

    Attributes:
        dims: Axes of each dimension.
        second: K, one axis of pair classes per axis.
        mean: m, one axis of segments per axis; None for a pair of tensors.
    """

    dims: Dims
    second: Array
    mean: Array | None

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, in order."""
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def means(self) -> Array:
        """m, of a table that has one."""
        assert self.mean is not None
        return self.mean

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(math.prod(axis.n for axis in dim) for dim in self.dims)

    @cached_property
    def diagonal(self) -> Array:
        """E x_i² (E x_i y_i) by segments (S_1, …, S_A)."""
        return self.second[tuple(axis.agree for axis in self.axes)]

    @cached_property
    def mean_square(self) -> float:
        """E x² over all entries."""
        return float(_average(self.diagonal, self.axes))

    @cached_property
    def average(self) -> float:
        """E x over all entries."""
        return 0.0 if self.mean is None else float(_average(self.mean, self.axes))

    @cached_property
    def centred(self) -> bool:
        """Whether the mean is zero everywhere."""
        return self.mean is None or bool(
            (self.mean**2 <= NEGLIGIBLE**2 * max(self.mean_square, 1e-300)).all()
        )

    def first_axis(self, dim: int) -> int:
        """Position of the first axis of a dimension among all axes."""
        return sum(len(axes_of) for axes_of in self.dims[:dim])

    # Linear maps on single axes

    def along(self, axis: int, pairs: Array | None, means: Array | None, dims: Dims) -> Table:
        """Apply matrices to the classes and the segments of one axis."""
        second = self.second if pairs is None else axes.along(self.second, axis, pairs)
        mean = self.mean
        if mean is not None and means is not None:
            mean = axes.along(mean, axis, means)
        return Table(dims, second, mean)

    def with_dim(self, dim: int, axes_of: Iterable[Axis]) -> Dims:
        """The dims with one of them replaced."""
        return (*self.dims[:dim], tuple(axes_of), *self.dims[dim + 1 :])

    def regroup(self, dim: int, position: int, target: Axis) -> Table:
        """Cut one axis of a dimension into other segments."""
        source = self.dims[dim][position]
        if source == target:
            return self
        pairs, means = axes.regroup(source, target)
        changed = list(self.dims[dim])
        changed[position] = target
        return self.along(self.first_axis(dim) + position, pairs, means, self.with_dim(dim, changed))

    def split(self, dim: int, position: int, inner: int) -> Table:
        """Cut one axis of a dimension into an outer and an inner factor."""
        axis = self.dims[dim][position]
        cut = axes.split(axis, inner)
        if cut is None:
            return self.regroup(dim, position, axes.divisible(axis, inner)).split(dim, position, inner)
        outer, fine, classes, segments = cut
        at = self.first_axis(dim) + position
        both = [factor for factor in (outer, fine) if factor.n > 1]
        second = np.take(self.second, classes, at)
        mean = None if self.mean is None else np.take(self.mean, segments, at)
        if outer.n == 1:
            second = np.take(second, outer.classes - 1, at)
            mean = None if mean is None else np.take(mean, 0, at)
        if inner == 1:
            second = np.take(second, 1, at + (outer.n > 1))
            mean = None if mean is None else np.take(mean, 0, at + (outer.n > 1))
        axes_of = self.dims[dim]
        return Table(self.with_dim(dim, [*axes_of[:position], *both, *axes_of[position + 1 :]]), second, mean)

    def merge(self, dim: int, position: int = 0) -> Table:
        """Join an axis of a dimension with the next one."""
        outer, inner = self.dims[dim][position : position + 2]
        axis, pairs, means = axes.merge(outer, inner)
        at = self.first_axis(dim) + position
        flat = self.second.reshape((*self.second.shape[:at], -1, *self.second.shape[at + 2 :]))
        mean = self.mean
        if mean is not None:
            mean = axes.along(mean.reshape((*mean.shape[:at], -1, *mean.shape[at + 2 :])), at, means)
        axes_of = self.dims[dim]
        dims = self.with_dim(dim, [*axes_of[:position], axis, *axes_of[position + 2 :]])
        return Table(dims, axes.along(flat, at, pairs), mean)

    def single(self, dim: int) -> Table:
        """The dimension as one axis."""
        table = self
        while len(table.dims[dim]) > 1:
            table = table.merge(dim, len(table.dims[dim]) - 2)
        return table

    def exchangeable(self, dim: int) -> Table:
        """The dimension as one axis without segments."""
        table = self.single(dim)
        return table.regroup(dim, 0, plain(table.shape[dim])) if table.dims[dim] else table

    def limited(self) -> Table:
        """The same with at most :data:`MAX_AXES` axes."""
        table = self
        while len(table.axes) > MAX_AXES:
            spare = [dim for dim, axes_of in enumerate(table.dims) if len(axes_of) > 1]
            if not spare:
                break
            table = table.merge(max(spare, key=lambda dim: len(table.dims[dim])))
        return table

    # Rearrangements

    def scaled(self, factor: float) -> Table:
        """The table of ``factor · x``."""
        return Table(self.dims, self.second * factor**2, None if self.mean is None else self.mean * factor)

    def permuted(self, order: Sequence[int]) -> Table:
        """The table of ``x.permute(order)``."""
        at = [self.first_axis(dim) + k for dim in order for k in range(len(self.dims[dim]))]
        return Table(
            tuple(self.dims[dim] for dim in order),
            self.second.transpose(at),
            None if self.mean is None else self.mean.transpose(at),
        )

    def viewed(self, shape: Sequence[int]) -> Table:
        """The table of ``x.reshape(shape)``."""
        table = Table((self.axes,), self.second, self.mean)
        dims: list[tuple[Axis, ...]] = []
        at = 0
        for size in shape:
            taken, got = [], 1
            while got < size:
                axes_of = table.dims[0]
                n, needed = axes_of[at].n, size // got
                if needed % n == 0 and size % (got * n) == 0:
                    pass
                elif n % needed == 0 and size % got == 0:
                    table = table.split(0, at, n // needed)
                elif at + 1 < len(axes_of):  # factors that do not fit together: join and try again
                    table = table.merge(0, at)
                    continue
                else:  # earlier factors are in the way
                    return self._reflowed(shape)
                taken.append(table.dims[0][at])
                got *= table.dims[0][at].n
                at += 1
            dims.append(tuple(taken))
        return Table(tuple(dims), table.second, table.mean).limited()

    def _reflowed(self, shape: Sequence[int]) -> Table:
        """A view whose factors do not fit: as one exchangeable axis, cut afresh."""
        table = Table((self.axes,), self.second, self.mean).exchangeable(0)
        for size in [size for size in shape if size > 1][:0:-1]:
            table = table.split(0, 0, size)
        remaining = iter(table.dims[0])
        return replace(table, dims=tuple((next(remaining),) if size > 1 else () for size in shape))

    def expanded(self, shape: Sequence[int]) -> Table:
        """The table of ``x.expand(shape)``: along a new axis all entries are one and the same."""
        second, mean = self.second, self.mean
        dims: list[tuple[Axis, ...]] = []
        source = ((),) * (len(shape) - len(self.dims)) + self.dims
        at = 0
        for axes_of, size in zip(source, shape, strict=True):
            if not axes_of and size > 1:
                dims.append((plain(size),))
                second = np.stack([second, second], at)
                mean = None if mean is None else np.expand_dims(mean, at)
            else:
                dims.append(axes_of)
            at += len(dims[-1])
        return Table(tuple(dims), second, mean)

    def sliced(self, dim: int, start: int, stop: int, step: int = 1) -> Table:
        """The table of ``x[start:stop:step]`` along one dimension."""
        size = self.shape[dim]
        if (start, stop, step) == (0, size, 1) or size == 1:
            return self
        axes_of = self.dims[dim]
        inner = math.prod(axis.n for axis in axes_of[1:])
        table, at = self, self.first_axis(dim)
        if len(axes_of) > 1 and step == 1 and start % inner == 0 and stop % inner == 0:
            start, stop, rest = start // inner, stop // inner, axes_of[1:]
        else:
            table, rest = self.single(dim), ()
        picked, classes, segments = axes.pick(table.dims[dim][0], start, stop, step)
        second, mean = np.take(table.second, classes, at), table.mean
        mean = None if mean is None else np.take(mean, segments, at)
        if picked.n == 1:
            second = np.take(second, -1, at)
            mean = None if mean is None else np.take(mean, 0, at)
            return Table(table.with_dim(dim, rest), second, mean)
        return Table(table.with_dim(dim, [picked, *rest]), second, mean)

    def apart(self, dim: int, first: int, second: int, length: int) -> Table:
        """E x_i y_j of the slices that begin at ``first`` and at ``second`` of one dimension.

        They share no entry.
        """
        table = self.single(dim)
        at = table.first_axis(dim)
        if not table.dims[dim]:
            return Table(table.dims, table.second, None)
        axis = table.dims[dim][0]
        a, b = np.searchsorted(np.array(axis.bounds), [first, second], side="right")
        values = np.take(table.second, a * axis.segments + b, at)
        if length == 1:
            return Table(table.with_dim(dim, []), values, None)
        return Table(table.with_dim(dim, [plain(length)]), np.stack([values, values], at), None)

    def summed(self, over: Sequence[int], *, keep: bool = False) -> Table:
        """The table of ``x.sum(over)``; sums that cancel give exact zeros."""
        drop = [self.first_axis(dim) + k for dim in over for k in range(len(self.dims[dim]))]
        dims = tuple(
            () if dim in over else axes_of for dim, axes_of in enumerate(self.dims) if keep or dim not in over
        )
        second = _summed(self.second, [(at, self.axes[at].counts) for at in drop])
        mean = self.mean
        if mean is not None:
            mean = _summed(mean, [(at, np.array(self.axes[at].sizes, float)) for at in drop])
        return Table(dims, second, mean)

    def swapped(self) -> Table:
        """The table of E y_i x_j from that of E x_i y_j."""
        return Table(self.dims, self.second[np.ix_(*(axis.swapped for axis in self.axes))], None)

    def centred_over(self, over: Sequence[int]) -> Table:
        """The table of ``x − x.mean(over, keepdim=True)``, also for pairs of tensors."""
        at = [self.first_axis(dim) + k for dim in over for k in range(len(self.dims[dim]))]
        first = second = self.second
        mean = None if self.mean is None else self.mean
        for axis in at:
            over_first, over_second = axes.averaging(self.axes[axis])
            first, second = axes.along(first, axis, over_first), axes.along(second, axis, over_second)
        both = second
        for axis in at:
            both = axes.along(both, axis, axes.averaging(self.axes[axis])[0])
        table = self.second - first - second + both
        if mean is not None:
            average = mean
            for axis in at:
                average = np.expand_dims(axes.weighted(average, axis, self.axes[axis].weights), axis)
            mean = mean - average
        return Table(self.dims, table, mean)

    def centred_over_first(self, over: Sequence[int]) -> Table:
        """The table of E (x_i − x̄) y_j, x̄ the mean over some dimensions, of a pair of tensors."""
        first = self.second
        for axis in (self.first_axis(dim) + k for dim in over for k in range(len(self.dims[dim]))):
            first = axes.along(first, axis, axes.averaging(self.axes[axis])[0])
        return Table(self.dims, self.second - first, None)

    def summed_second(self, over: Sequence[int]) -> Table:
        """E x_i z_j from E x_i y_j, where z is the sum of y over some dimensions, repeated along them."""
        table = self.second
        for axis in [self.first_axis(dim) + k for dim in over for k in range(len(self.dims[dim]))]:
            table = axes.along(table, axis, axes.averaging(self.axes[axis])[1] * self.axes[axis].n)
        return Table(self.dims, table, None)

    def averaged_over(self, over: Sequence[int], by_segment: Array) -> Array:
        """Average of a quantity by segments over some dimensions, which stay with size 1."""
        for axis in [self.first_axis(dim) + k for dim in over for k in range(len(self.dims[dim]))]:
            by_segment = np.expand_dims(axes.weighted(by_segment, axis, self.axes[axis].weights), axis)
        return by_segment

    def sides(self, by_segment: Array) -> tuple[Array, Array]:
        """A quantity by segments, at the first and the second entry of each pair class.

        Along axes without segments the results have size 1.
        """
        if by_segment.size == 1:  # no axis is segmented
            everywhere = by_segment.reshape((1,) * self.second.ndim)
            return everywhere, everywhere
        left, right = _side_indices(self.axes)
        return by_segment[left], by_segment[right]


@lru_cache(maxsize=4096)
def _side_indices(axes_of: tuple[Axis, ...]) -> tuple[tuple[Indices, ...], tuple[Indices, ...]]:
    one = np.zeros(1, dtype=np.intp)
    left, right = (
        [one if axis.segments == 1 else getattr(axis, side) for axis in axes_of] for side in ("left", "right")
    )
    return np.ix_(*left), np.ix_(*right)


def _average(by_segment: Array, axes_of: Sequence[Axis]) -> Array:
    if by_segment.size == 1:  # no axis is segmented
        return by_segment.reshape(())
    for axis in axes_of:
        by_segment = axes.weighted(by_segment, 0, axis.weights)
    return by_segment


def _summed(values: Array, weights: Sequence[tuple[int, Array]]) -> Array:
    """Weighted sums over some axes, in which what cancels becomes zero."""
    size = np.abs(values)
    for at, weight in sorted(weights, key=lambda pair: -pair[0]):
        values = axes.weighted(values, at, weight)
        size = axes.weighted(size, at, weight)
    return np.where(np.abs(values) <= NEGLIGIBLE * size, 0.0, values)


def constant(shape: Sequence[int], value: float) -> Table:
    """A tensor filled with one number."""
    return independent(shape, 0.0, value)


def independent(shape: Sequence[int], variance: float, mean: float = 0.0) -> Table:
    """A tensor of independent entries."""
    dims: Dims = tuple((plain(int(n)),) if n > 1 else () for n in shape)
    rank = sum(map(len, dims))
    second = np.full((2,) * rank, mean**2)
    second[(1,) * rank] += variance
    return Table(dims, second, np.full((1,) * rank, mean))


def measured(tensor: torch.Tensor) -> Table:
    """The table of a tensor with known entries, every axis taken as exchangeable.

    Infinities (the −∞ of additive masks) count as zero.
    """
    if tensor.numel() == 0 or tensor.is_complex():
        return constant(tensor.shape, 0.0)
    values = tensor.detach().to("cpu", torch.float64).numpy()
    if (values == values.flat[0]).all() and np.isfinite(values.flat[0]):
        return constant(tensor.shape, float(values.flat[0]))
    values = finite(tensor)
    dims: Dims = tuple((plain(n),) if n > 1 else () for n in values.shape)
    values = values.reshape([n for n in values.shape if n > 1])
    second = np.empty((2,) * values.ndim)
    for pattern in np.ndindex(*second.shape):
        differing = tuple(axis for axis, agree in enumerate(pattern) if not agree)
        second[pattern] = (values.mean(axis=differing) ** 2).mean()
    for axis, n in enumerate(values.shape):  # all pairs → differing pairs
        both, agree = np.take(second, 0, axis), np.take(second, 1, axis)
        second = np.stack([(both - agree / n) / (1 - 1 / n), agree], axis)
    return Table(dims, second, np.full((1,) * values.ndim, values.mean() if values.size else 0.0))


def finite(tensor: torch.Tensor) -> Array:
    """Entries of a real tensor, with infinities and what stands for them as zero."""
    values = tensor.detach().to("cpu", torch.float64).numpy()
    return np.where(np.isfinite(values) & (np.abs(values) < 1e30), values, 0.0)
