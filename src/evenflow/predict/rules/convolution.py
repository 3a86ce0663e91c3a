"""Convolutions of any dimension, strided, dilated, padded, grouped and transposed.

The kernel's entries are independent with mean zero, so two outputs covary only
through the same tap k, whose inputs then agree or differ as the outputs do
(:mod:`evenflow.predict.rules.positions`):

    K_out(p, p') = q_w C_in Σ_k K_x(input of p through k, input of p' through k).

The kernel's gradient sums over pairs of positions of one tap,

    E dw² = mean_k Σ_(b, b') Σ_(p, p') K_g(p, p') K_x(input of p through k, input of p' through k).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evenflow.predict.axes import plain
from evenflow.predict.fields import Field, Made
from evenflow.predict.pointwise import apply
from evenflow.predict.rules.positions import (
    MOST_PHASED,
    Maps,
    backward,
    class_count,
    mapped,
    pairs_of,
    taps,
    with_axis,
)
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import view
from evenflow.predict.table import Table, independent


def _full(value: Sequence[int], n: int) -> list[int]:
    return list(value) * n if len(value) == 1 else list(value)


class _Geometry:
    """Sizes of one convolution, seen from its wide side (the input) to its narrow one (the output)."""

    def __init__(self, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> None:
        n = len(kernel)
        self.kernel = list(kernel)
        self.stride, self.padding, self.dilation = _full(stride, n), _full(padding, n), _full(dilation, n)

    def maps(self, wide: Sequence[int], narrow: Sequence[int]) -> tuple[Maps, ...]:
        """The taps of each spatial dimension."""
        values = zip(wide, narrow, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(taps(*each) for each in values)


def _over_channels(table: Table) -> Table:
    """K averaged over the channels that agree; channels are dimension 1, of size 1 afterwards."""
    table = table.single(1)
    if not table.dims[1]:
        return table
    axis, at = table.dims[1][0], table.first_axis(1)
    second = np.tensordot(axis.weights, table.second[(slice(None),) * at + (axis.agree,)], (0, at))
    return Table(table.with_dim(1, []), second, None)


def _flat(table: Table) -> Table:
    """The same with one axis for the samples, exchangeable, and one or, with phases, two for positions."""
    table = _over_channels(table).exchangeable(0)
    for dim in (0, *range(2, len(table.dims))):
        if len(table.dims[dim]) != 2 or table.shape[dim] > MOST_PHASED:
            table = with_axis(table, dim)
    return table


def _convolved(x: Field, w: Field, shape: Sequence[int], maps: tuple[Maps, ...], fan: float) -> Field:
    if not w.table.centred:
        raise NoRuleError("a convolution whose kernel has a mean")

    def of_tables(tx: Table, tw: Table) -> Table:
        table = _over_channels(tx)
        for dim, each in enumerate(maps, start=2):
            table = mapped(table, dim, each)
        second = table.second * (tw.mean_square * fan)
        if shape[1] > 1:
            at = table.first_axis(1)
            second = np.stack([np.zeros_like(second), second], at)
            table = Table(table.with_dim(1, [plain(shape[1])]), second, None)
        return Table(table.dims, second, np.zeros([axis.segments for axis in table.axes]))

    return Made(shape, (x, w), of_tables, ("convolution", tuple(shape), fan, maps))


@rule("convolution", "_convolution")
def convolution(
    context: Context,
    output: Any,
    x: Field,
    w: Field,
    bias: Field | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *rest: Any,
) -> Field:
    """[B, C, …] ∗ [C_out, C_in / groups, …]."""
    geometry = _Geometry(w.shape[2:], stride, padding, dilation)
    shape = tuple(output.shape)
    if transposed:
        maps = tuple(backward(each) for each in geometry.maps(shape[2:], x.shape[2:]))
        y = _convolved(x, w, shape, maps, x.shape[1] / groups)
    else:
        y = _convolved(x, w, shape, geometry.maps(x.shape[2:], shape[2:]), w.shape[1])
    if bias is not None:
        wide = view(context, None, bias, [n if d == 1 else 1 for d, n in enumerate(shape)])
        y = apply(None, "add", [y, wide], {}, shape)  # type: ignore[arg-type]
    return y


@rule("convolution_backward")
def convolution_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    w: Field,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Sequence[bool],
) -> list[Field | None]:
    """Cotangents of input, kernel and bias."""
    geometry = _Geometry(w.shape[2:], stride, padding, dilation)
    wide, narrow = (g, x) if transposed else (x, g)
    maps = geometry.maps(wide.shape[2:], narrow.shape[2:])
    back = maps if transposed else tuple(backward(each) for each in maps)
    gx = _convolved(g, w, x.shape, back, g.shape[1] / groups) if mask[0] else None

    def of_tables(t_narrow: Table, t_wide: Table) -> Table:
        a, b = (_flat(t) for t in (t_narrow, t_wide))
        spatial = range(2, len(w.shape))
        values = b.second.reshape(-1, *(class_count(b.dims[dim]) for dim in spatial))
        for at, each in enumerate(maps, start=1):
            counts = np.mean([pairs_of(one, b.dims[at + 1], a.dims[at + 1]) for one in each], 0)
            values = np.moveaxis(np.tensordot(counts, values, (1, at)), 0, at)
        values = (a.second.reshape(values.shape) * values).reshape(2, -1).sum(1) @ a.axes[0].counts
        return independent(w.shape, float(values))

    gw = (
        Made(w.shape, (narrow, wide), of_tables, ("kernel gradient", w.shape, maps, transposed))
        if mask[1]
        else None
    )
    others = [d for d in range(len(g.shape)) if d != 1]
    gb = summed(context, g, others, (g.shape[1],), keep=False) if mask[2] else None
    return [gx, gw, gb]
