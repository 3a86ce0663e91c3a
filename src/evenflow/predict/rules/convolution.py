"""Convolutions of any dimension, strided, dilated, padded, grouped and transposed.

The kernel's entries are independent with mean zero, so two outputs covary only
through the same tap k, whose inputs then agree or differ as the outputs do. With
c_k the number of output positions for which tap k meets the input (P of them
in all), per spatial dimension

    K_out = q_w C_in K_x · gain,
    gain(agree) = Σ_k c_k / P,   gain(differ) = Σ_k c_k (c_k − 1) / (P (P − 1)).

This counts zero padding and stride exactly, as an average over positions. The
kernel's gradient sums over pairs of positions of one tap:

    E dw² = Σ_(b, b') Π_dim [mean_k c_k, mean_k c_k (c_k − 1)] · K_g K_x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evenflow.predict.axes import Array, plain
from evenflow.predict.fields import Field, Made
from evenflow.predict.pointwise import apply
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import view
from evenflow.predict.table import Dims, Table, independent


def tap_counts(size_in: int, size_out: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """c_k: for how many output positions each tap meets the input [kernel]."""
    position = np.arange(size_out)[:, None] * stride - padding + np.arange(kernel) * dilation
    counts: Array = ((position >= 0) & (position < size_in)).sum(0).astype(float)
    return counts


def _canonical(table: Table) -> tuple[Array, Array]:
    """K with exactly two classes for samples and positions, averaged over the channels that agree [B, …].

    m likewise.
    """
    for dim in range(len(table.dims)):
        table = table.single(dim) if dim == 1 else table.exchangeable(dim)
    second = table.second
    at = table.first_axis(1)
    if table.dims[1]:
        axis = table.dims[1][0]
        weight = np.zeros(axis.classes)
        weight[axis.agree] = axis.weights
        second = np.tensordot(weight, second, (0, at))
    shape = [2 if axes_of else 1 for d, axes_of in enumerate(table.dims) if d != 1]
    return np.broadcast_to(second.reshape(shape), [2] * len(shape)), second


def _spread(values: Array, counts: Sequence[Array], sizes: Sequence[int]) -> Array:
    """Multiply spatial axes (after the first) by their gains."""
    for i, (c, size) in enumerate(zip(counts, sizes, strict=True), start=1):
        gain = np.array([(c * (c - 1)).sum() / max(size * (size - 1.0), 1.0), c.sum() / size])
        values = values * gain.reshape([2 if d == i else 1 for d in range(values.ndim)])
    return values


def _table(values: Array, shape: Sequence[int]) -> Table:
    """From [2 per sample and position] to a table with independent channels."""
    values = np.stack([np.zeros_like(values), values], 1)
    dims: Dims = tuple((plain(n),) if n > 1 else () for n in shape)
    values = values[tuple(slice(None) if n > 1 else 1 for n in shape)]
    return Table(dims, values, np.zeros((1,) * values.ndim))


def _full(value: Sequence[int], n: int) -> list[int]:
    return list(value) * n if len(value) == 1 else list(value)


class _Geometry:
    """Sizes of one convolution, seen from input to output or (transposed) from output to input."""

    def __init__(self, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> None:
        n = len(kernel)
        self.kernel = list(kernel)
        self.stride, self.padding, self.dilation = _full(stride, n), _full(padding, n), _full(dilation, n)

    def counts(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Array]:
        """Tap counts per spatial dimension of the convolution from ``inputs`` to ``outputs``."""
        values = zip(inputs, outputs, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [tap_counts(*each) for each in values]

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(map(tuple, (self.kernel, self.stride, self.padding, self.dilation)))


def _convolved(
    x: Field, w: Field, shape: Sequence[int], counts: Sequence[Array], fan: float, key: Any
) -> Field:
    if not w.table.centred:
        raise NoRuleError("a convolution whose kernel has a mean")

    def of_tables(tx: Table, tw: Table) -> Table:
        values, _ = _canonical(tx)
        return _table(_spread(values * tw.mean_square * fan, counts, shape[2:]), shape)

    return Made(shape, (x, w), of_tables, ("convolution", tuple(shape), fan, key))


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
        counts, fan = geometry.counts(shape[2:], x.shape[2:]), x.shape[1] / groups
    else:
        counts, fan = geometry.counts(x.shape[2:], shape[2:]), w.shape[1]
    y = _convolved(x, w, shape, counts, fan, (geometry.key, transposed))
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
    wide, narrow = (g.shape, x.shape) if transposed else (x.shape, g.shape)
    counts = geometry.counts(wide[2:], narrow[2:])
    fan = g.shape[1] / groups
    gx = _convolved(g, w, x.shape, counts, fan, (geometry.key, not transposed)) if mask[0] else None

    def of_tables(tg: Table, tx: Table) -> Table:
        values = _canonical(tg)[0] * _canonical(tx)[0]
        samples = x.shape[0]
        weights = [np.array([samples * (samples - 1.0), float(samples)])]
        weights += [np.array([(c * (c - 1)).mean(), c.mean()]) for c in counts]
        for weight in weights:
            values = np.tensordot(weight, values, (0, 0))
        return independent(w.shape, float(values))

    gw = (
        Made(w.shape, (g, x), of_tables, ("kernel gradient", w.shape, geometry.key, transposed))
        if mask[1]
        else None
    )
    others = [d for d in range(len(g.shape)) if d != 1]
    gb = summed(context, g, others, (g.shape[1],), keep=False) if mask[2] else None
    return [gx, gw, gb]
