"""Ops that put tensors side by side, and those that write or read a part of a tensor.

The joined dimension has one segment (or more) for each part. A slice's gradient is the
cotangent with zeros beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evenflow.predict import axes
from evenflow.predict.axes import Axis, joined, plain
from evenflow.predict.combine import common_axes, retarget
from evenflow.predict.fields import Field, Leaf, cross
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import cut, view
from evenflow.predict.table import Dims, Table, constant


class Joined(Field):
    """Fields side by side along one dimension: one segment (or more) each."""

    def __init__(self, shape: Sequence[int], parts: Sequence[Field], dim: int) -> None:
        super().__init__(shape, cotangent=any(part.cotangent for part in parts))
        self.parts = tuple(parts)
        self.dim = dim

    @property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        tags = 0
        for part in self.parts:
            tags |= part.tags
        return tags

    @property
    def table(self) -> Table:
        """Mean and pair table."""
        if not hasattr(self, "_table"):
            self._table = joined_table(self, self)
        return self._table

    def cross(self, other: Joined) -> Table | None:
        """E x_i y_j of two fields joined alike."""
        if self.dim != other.dim or [p.shape for p in self.parts] != [p.shape for p in other.parts]:
            return None
        if not any(a.tags & b.tags for a in self.parts for b in other.parts):
            return None
        table = joined_table(self, other)
        return Table(table.dims, table.second, None)


def joined_table(x: Joined, y: Joined) -> Table:
    """The table of two joined fields of the same make; that of one if they are the same."""
    dim = x.dim
    own = [part.table for part in x.parts]
    other = own if x is y else [part.table for part in y.parts]
    dims = _joined_dims([*own, *other], dim, x.shape)
    lists = [[_at(t, dims, dim) for t in tables] for tables in (own, other)]
    axis_parts = [joined(_axis_of(mine, dim), _axis_of(its, dim)) for mine, its in zip(*lists, strict=True)]
    lists = [
        [t.regroup(dim, 0, a) if t.dims[dim] else t for t, a in zip(tables, axis_parts, strict=True)]
        for tables in lists
    ]
    axis = Axis(tuple(size for part in axis_parts for size in part.sizes))
    at = sum(len(axes_of) for axes_of in dims[:dim])
    flat = [a for i, axes_of in enumerate(dims) for a in (axes_of if i != dim else (axis,))]
    second = np.zeros([a.classes for a in flat])
    mean = np.zeros([a.segments for a in flat])
    segment = np.cumsum([0, *(part.segments for part in axis_parts)])
    view_ = np.moveaxis(second, at, 0)
    mean_view = np.moveaxis(mean, at, 0)
    S = axis.segments
    for i, (a, pa) in enumerate(zip(axis_parts, x.parts, strict=True)):
        ta = lists[0][i]
        mean_view[segment[i] : segment[i + 1]] = np.moveaxis(
            _with_axis(ta.mean, at, bool(ta.dims[dim])), at, 0
        )
        for j, (b, pb) in enumerate(zip(axis_parts, y.parts, strict=True)):
            if i == j:
                pair = ta if pa is pb else cross(pa, pb)
                pair = None if pair is None else _at(pair, dims, dim)
                if pair is not None:
                    pair = pair.regroup(dim, 0, a) if pair.dims[dim] else pair
                    values = np.moveaxis(_with_axis(pair.second, at, bool(pair.dims[dim])), at, 0)
                    if not pair.dims[dim]:
                        view_[segment[i] * S + segment[i]] = values[0]
                        view_[S * S + segment[i]] = values[0]
                        continue
                    for c in range(a.classes):
                        left, right = segment[i] + a.left[c], segment[i] + a.right[c]
                        agree = c >= a.segments**2
                        view_[S * S + left if agree else left * S + right] = values[c]
                    continue
            tb = lists[1][j]
            block = _between(pa, pb, ta, tb, dims, dim, at)
            for k in range(a.segments):
                for m in range(b.segments):
                    view_[(segment[i] + k) * S + segment[j] + m] = block[k, m]
                    if i == j and k == m:
                        view_[S * S + segment[i] + k] = block[k, m]
    joined_dims = (*dims[:dim], (axis,), *dims[dim + 1 :])
    table = Table(joined_dims, second, mean)
    if axis.segments > axes.MAX_SEGMENTS or _same_parts(table, dim, axis):
        table = table.regroup(dim, 0, plain(axis.n))
    return table


def _same_parts(table: Table, dim: int, axis: Axis) -> bool:
    """Whether all segments look alike, so that cutting the axis says nothing."""
    whole = table.regroup(dim, 0, plain(axis.n))
    back = whole.regroup(dim, 0, axis)
    scale = np.abs(table.second).max()
    real = np.concatenate([axis.counts > 0])
    at = table.first_axis(dim)
    difference = np.moveaxis(np.abs(back.second - table.second), at, 0)[real]
    return bool(difference.max() <= 1e-6 * scale)


def _with_axis(values: Any, at: int, present: bool) -> Any:
    return values if present else np.expand_dims(values, at)


def _joined_dims(tables: Sequence[Table], dim: int, shape: Sequence[int]) -> Dims:
    """Axes that all parts can be brought to; along ``dim`` each keeps its own."""
    dims = []
    for d in range(len(shape)):
        found: tuple[Axis, ...] = ()
        if d != dim:
            for table in tables:
                axes_of = table.dims[d]
                found = common_axes(found, axes_of) if found and axes_of else found or axes_of
        dims.append(found)
    return tuple(dims)


def _at(table: Table, dims: Dims, dim: int) -> Table:
    """A part with the common axes, and one axis along ``dim``."""
    table = table.single(dim)
    return retarget(table, (*dims[:dim], table.dims[dim], *dims[dim + 1 :]))


def _between(a: Field, b: Field, ta: Table, tb: Table, dims: Dims, dim: int, at: int) -> Any:
    """E x_i y_j of entries of two parts, by their segments along ``dim`` [S_a, S_b, …]."""
    flat = [axis for i, axes_of in enumerate(dims) if i != dim for axis in axes_of]
    left = np.moveaxis(_with_axis(ta.mean, at, bool(ta.dims[dim])), at, 0)
    right = np.moveaxis(_with_axis(tb.mean, at, bool(tb.dims[dim])), at, 0)
    rows = np.ix_(np.arange(len(left)), *(axis.left for axis in flat))
    columns = np.ix_(np.arange(len(right)), *(axis.right for axis in flat))
    block = left[rows][:, None] * right[columns][None]
    pair = cross(a, b) if a.shape == b.shape else None
    if pair is not None:
        # Entries of the two parts at the same position may covary more than others; seen from
        # the joined axis they all differ, so each block takes the average over its pairs.
        pair = _at(pair, dims, dim)
        if not pair.dims[dim]:
            return np.moveaxis(_with_axis(pair.second, at, False), at, 0)[None]
        mine, its = _axis_of(ta, dim), _axis_of(tb, dim)
        axis = joined(joined(mine, its), pair.dims[dim][0])
        values = np.moveaxis(pair.regroup(dim, 0, axis).second, at, 0)
        n, S = np.array(axis.sizes, float), axis.segments
        total = (axis.counts[: S * S].reshape((S, S) + (1,) * (values.ndim - 1))) * values[: S * S].reshape(
            (S, S, *values.shape[1:])
        )
        total[range(S), range(S)] += n.reshape((S,) + (1,) * (values.ndim - 1)) * values[S * S :]
        mean = total / np.outer(n, n).reshape((S, S) + (1,) * (values.ndim - 1))
        to_mine, to_its = axes.regroup(axis, mine)[1], axes.regroup(axis, its)[1]
        return np.einsum("as,bt,st...->ab...", to_mine, to_its, mean)
    return block


def _axis_of(table: Table, dim: int) -> Axis:
    return table.dims[dim][0] if table.dims[dim] else plain(1)


@rule("cat")
def cat(context: Context, output: Any, parts: Sequence[Field], dim: int = 0) -> Field:
    """Side by side along a dimension."""
    dim %= len(output.shape)
    parts = [part for part in parts if len(part.shape) == len(output.shape) and part.shape[dim] > 0]
    if len(parts) == 1:
        return parts[0]
    result = Joined(output.shape, parts, dim)
    if any(part.keep is not None for part in parts):
        result.keep = _joined_keep(parts, dim)
    return result


def _joined_keep(parts: Sequence[Field], dim: int) -> torch.Tensor:
    """Which entries of joined scores count in a softmax."""
    queries, keys = len(parts[0].shape) - 2, len(parts[0].shape) - 1
    if dim != keys or queries < 0:
        raise NoRuleError("masked scores joined along a dimension that is not the last")
    ones = [torch.ones(part.shape[queries:], dtype=torch.bool) for part in parts]
    keeps = [one if part.keep is None else part.keep & one for part, one in zip(parts, ones, strict=True)]
    lead = torch.broadcast_shapes(*(keep.shape[:-2] for keep in keeps))
    return torch.cat([keep.expand(*lead, *keep.shape[-2:]) for keep in keeps], -1)


@rule("stack")
def stack(context: Context, output: Any, parts: Sequence[Field], dim: int = 0) -> Field:
    """Side by side along a new dimension."""
    dim %= len(output.shape)
    shape = [*output.shape[:dim], 1, *output.shape[dim + 1 :]]
    return cat(context, output, [view(context, None, part, shape) for part in parts], dim)


def padded(context: Context, x: Field, dim: int, before: int, after: int) -> Field:
    """Zeros on both sides along a dimension."""
    parts: list[Field] = [x]
    for count, at in ((before, 0), (after, len(parts))):
        if count:
            shape = [*x.shape[:dim], count, *x.shape[dim + 1 :]]
            parts.insert(at if at == 0 else len(parts), Leaf(constant(shape, 0.0)))
    if len(parts) == 1:
        return x
    total = before + x.shape[dim] + after
    return Joined([*x.shape[:dim], total, *x.shape[dim + 1 :]], parts, dim)


@rule("constant_pad_nd")
def constant_pad_nd(context: Context, output: Any, x: Field, pads: Sequence[int], value: float = 0) -> Field:
    """Padding with a constant; negative padding cuts."""
    if value != 0:
        raise NoRuleError("padding with a value other than 0")
    for i in range(len(pads) // 2):
        dim = len(x.shape) - 1 - i
        before, after = pads[2 * i : 2 * i + 2]
        x = cut(context, x, dim, max(-before, 0), x.shape[dim] - max(-after, 0))
        x = padded(context, x, dim, max(before, 0), max(after, 0))
    return x


@rule("slice_backward")
def slice_backward(
    context: Context, output: Any, g: Field, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Field:
    """The cotangent, zero where the slice did not reach."""
    dim %= len(sizes)
    first, last, step = slice(start, end, step).indices(sizes[dim])
    if step == 1:
        return padded(context, g, dim, first, sizes[dim] - last)
    if sizes[dim] % step or g.shape[dim] * step != sizes[dim]:
        raise NoRuleError("a slice whose step does not divide the dimension")
    # x[r::s] is column r of x as [n/s, s]
    column = view(context, None, g, (*g.shape[: dim + 1], 1, *g.shape[dim + 1 :]))
    return view(context, None, padded(context, column, dim + 1, first, step - first - 1), sizes)


@rule("select_backward")
def select_backward(
    context: Context, output: Any, g: Field, sizes: Sequence[int], dim: int, index: int
) -> Field:
    """The cotangent at one index, zero elsewhere."""
    dim %= len(sizes)
    index %= sizes[dim]
    shape = [*sizes[:dim], 1, *sizes[dim + 1 :]]
    return padded(context, view(context, None, g, shape), dim, index, sizes[dim] - index - 1)


@rule("roll", "flip")
def roll(context: Context, output: Any, x: Field, *args: Any) -> Field:
    """Entries moved along an axis: the same table where that axis is exchangeable."""
    return x


@rule("<patch>")
def patch(context: Context, base: Any, old: Field, new: Field, part: Any) -> Field:
    """A slice of ``old`` overwritten by ``new``."""
    if base.dim() == part.dim():
        different = [d for d in range(base.dim()) if base.shape[d] != part.shape[d]]
        if len(different) == 1 and base.stride() == part.stride():
            dim = different[0]
            offset = part.storage_offset() - base.storage_offset()
            start = offset // base.stride(dim)
            end = start + part.shape[dim]
            pieces = [cut(context, old, dim, 0, start)] if start else []
            pieces += [new]
            pieces += [cut(context, old, dim, end, base.shape[dim])] if end < base.shape[dim] else []
            return Joined(base.shape, pieces, dim)
    if base.dim() == part.dim() + 1:
        for dim in range(base.dim()):
            rest = [d for d in range(base.dim()) if d != dim]
            if [base.shape[d] for d in rest] == list(part.shape) and [base.stride(d) for d in rest] == list(
                part.stride()
            ):
                index = (part.storage_offset() - base.storage_offset()) // base.stride(dim)
                shape = [*base.shape[:dim], 1, *base.shape[dim + 1 :]]
                pieces = [cut(context, old, dim, 0, index)] if index else []
                pieces.append(view(context, None, new, shape))
                pieces += (
                    [cut(context, old, dim, index + 1, base.shape[dim])]
                    if index + 1 < base.shape[dim]
                    else []
                )
                return Joined(base.shape, pieces, dim)
    raise NoRuleError("writing into a part of a tensor that is no slice")


@rule("<part>")
def part(context: Context, value: Field, latest: Any, place: Any) -> Field:
    """A slice read from memory that was written as a whole."""
    base_offset, base_shape, base_stride = latest
    offset, shape, _ = place
    if len(shape) == len(base_shape) and sum(a != b for a, b in zip(shape, base_shape, strict=True)) == 1:
        dim = next(d for d in range(len(shape)) if shape[d] != base_shape[d])
        start = (offset - base_offset) // base_stride[dim] if base_stride[dim] else 0
        return cut(context, value, dim, start, start + shape[dim])
    if len(shape) == len(base_shape) - 1:
        for dim in range(len(base_shape)):
            if (*base_shape[:dim], *base_shape[dim + 1 :]) == shape and base_stride[dim]:
                index, rest = divmod(offset - base_offset, base_stride[dim])
                if not rest and 0 <= index < base_shape[dim]:
                    return view(context, None, cut(context, value, dim, index, index + 1), shape)
    raise NoRuleError("reading a part of a tensor that is no slice")
