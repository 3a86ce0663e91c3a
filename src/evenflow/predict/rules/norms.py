"""Normalisation: batch, layer, group, instance and RMS norms.

Over the n entries of the normalised dimensions S,

    x̂ = (x − x̄)/σ,     K_x̂ = K̃_x / √(v v'),   K̃ the table of the centred tensor, v = σ² + ε.

Backward, with ĝ = γ g and c = mean_S(ĝ x̂):  g_x = (ĝ − mean_S ĝ − x̂ c)/σ, hence

    K_gx = [K̃_ĝ (1 − 2/n) + K_x̂ E c c'] / √(v v') · ν/(ν − 2),
    E c c' = mean over pairs in S of K̃_ĝ K_x̂.

The last factor is E[1/v̂] E[v̂] of the sample variance v̂, a scaled χ² with ν
degrees of freedom, 1/ν = mean over pairs in S of (K̃_x/K̃_x(agree))². It is what
makes deep BatchNorm nets explode by (B − 2)/(B − 3) and not by 1 per layer.

References:
    Yang et al., "A Mean Field Theory of Batch Normalization", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import numpy as np

from evenflow.predict.axes import Array
from evenflow.predict.fields import Field, Leaf, cross
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import view
from evenflow.predict.table import Table, align, constant


@final
class Normalised(Field):
    """x̂.

    Args:
        x: What is normalised.
        over: The dimensions S.
        eps: Added to the variance.
        centring: Whether the mean is subtracted.
    """

    def __init__(self, x: Field, over: Sequence[int], eps: float, *, centring: bool = True) -> None:
        super().__init__(x.shape)
        self.x, self.over, self.eps, self.centring = x, tuple(over), eps, centring

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.x.tags

    def centred(self, table: Table) -> Table:
        """K̃."""
        return table.centred_over(self.over) if self.centring else table

    @cached_property
    def variance(self) -> Array:
        """V by segments, of size 1 along S."""
        table = self.centred(self.x.table)
        return np.maximum(table.averaged_over(self.over, table.diagonal), 0.0) + self.eps

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        table = self.centred(self.x.table)
        std = np.broadcast_to(np.sqrt(self.variance), table.diagonal.shape)
        left, right = table.sides(std)
        assert table.mean is not None
        return Table(table.dims, table.second / (left * right), table.mean / std)

    def cross(self, other: Normalised) -> Table | None:
        """E x̂_i ŷ_j."""
        if (self.over, self.eps, self.centring) != (other.over, other.eps, other.centring):
            return None
        pair = cross(self.x, other.x)
        if pair is None:
            return None
        pair = self.centred(pair)
        dims, (pair, mine, theirs) = align([pair, self.x.table, other.x.table], self.shape)
        stds = []
        for normalised, table in ((self, mine), (other, theirs)):
            centred = normalised.centred(table)
            variance = np.maximum(centred.averaged_over(self.over, centred.diagonal), 0.0) + self.eps
            stds.append(np.broadcast_to(np.sqrt(variance), centred.diagonal.shape))
        return Table(dims, pair.second / (pair.sides(stds[0])[0] * pair.sides(stds[1])[1]), None)

    def cross_through(self, other: Field) -> Table | None:
        """E x̂_i y_j with a field that is no norm: that of x, centred and divided by σ of the mean."""
        pair = cross(self.x, other)
        return None if pair is None else self.divided(self.centred_first(pair))

    def centred_first(self, pair: Table) -> Table:
        """E (x_i − x̄) y_j."""
        return pair.centred_over_first(self.over) if self.centring else pair

    def divided(self, pair: Table) -> Table:
        """E x_i y_j / σ_i."""
        dims, (pair, mine) = align([pair, self.x.table], self.shape)
        centred = self.centred(mine)
        variance = np.maximum(centred.averaged_over(self.over, centred.diagonal), 0.0) + self.eps
        std = np.broadcast_to(np.sqrt(variance), centred.diagonal.shape)
        return Table(dims, pair.second / pair.sides(std)[0], None)

    @cached_property
    def spread(self) -> float:
        """E[1/v̂] E[v̂] = ν/(ν − 2)."""
        table = self.centred(self.x.table)
        full = float(table.mean_square)
        if full <= 0:
            return 1.0
        squared = Table(table.dims, (table.second / full) ** 2, None)
        inverse = _pair_average(squared, self.over)
        return 1 / (1 - 2 * inverse) if inverse < 0.25 else 2.0


def _pair_average(table: Table, over: Sequence[int]) -> float:
    """Average over all pairs of entries in some dimensions, of the same entries in the others."""
    values = table.second
    axes_of = table.axes
    inside = {table.first_axis(dim) + k for dim in over for k in range(len(table.dims[dim]))}
    for at in reversed(range(len(axes_of))):
        axis = axes_of[at]
        if at in inside:
            weight = axis.counts / axis.n**2
        else:
            weight = np.zeros(axis.classes)
            weight[axis.agree] = axis.weights
        values = np.tensordot(weight, values, (0, at))
    return float(values)


@final
class NormCotangent(Field):
    """The cotangent of x from that of x̂."""

    def __init__(self, g: Field, normalised: Normalised) -> None:
        super().__init__(g.shape, cotangent=True)
        self.g, self.normalised = g, normalised
        self.spread_from, self.scaled_by = (g,), normalised.x

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.g.tags

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        return self._of(self.g.table, self.normalised.table, self.normalised)

    def cross(self, other: NormCotangent) -> Table | None:
        """E of two such."""
        g = cross(self.g, other.g)
        if g is None or self.normalised.over != other.normalised.over:
            return None
        x = cross(self.normalised, other.normalised)
        if x is None:
            return None
        return self._of(g, x, other.normalised)

    def cross_through(self, other: Field) -> Table | None:
        """E g_x,i h_j with a cotangent of another kind, without the part along x̂: it is one of n."""
        pair = cross(self.g, other)
        return None if pair is None else self.normalised.divided(self.normalised.centred_first(pair))

    def _of(self, g: Table, x: Table, other: Normalised) -> Table:
        mine = self.normalised
        dims, (g, x, table, table_other) = align([g, x, mine.x.table, other.x.table], self.shape)
        n = math.prod(self.shape[dim] for dim in mine.over)
        g = (
            Table(dims, g.second, None)
            if not mine.centring
            else Table(dims, g.second, None).centred_over(mine.over)
        )
        both = g.second * x.second
        for axis in (g.first_axis(dim) + k for dim in mine.over for k in range(len(dims[dim]))):
            weight = g.axes[axis].counts / g.axes[axis].n ** 2
            both = np.expand_dims(np.tensordot(weight, both, (0, axis)), axis)
        lost = 2 / n if mine.centring or n > 1 else 0.0
        second = g.second * (1 - lost) + x.second * both
        stds = []
        for normalised, of in ((mine, table), (other, table_other)):
            centred = normalised.centred(of)
            variance = np.maximum(centred.averaged_over(mine.over, centred.diagonal), 0.0) + normalised.eps
            stds.append(np.broadcast_to(np.sqrt(variance), centred.diagonal.shape))
        scale = g.sides(stds[0])[0] * g.sides(stds[1])[1]
        spread = math.sqrt(mine.spread * other.spread)
        mean = np.zeros([axis.segments for axis in g.axes])
        return Table(dims, second / scale * spread, mean)


# The ops


def _normalised(
    context: Context, x: Field, over: Sequence[int], eps: float, *, centring: bool = True
) -> tuple[Normalised, Field]:
    """x̂, and the field of 1/σ by which backward finds it again."""
    result = Normalised(x, over, eps, centring=centring)
    inverse = float(np.mean(1 / np.sqrt(result.variance)))
    rstd = Leaf(constant((1,), inverse))
    context.made["normalised", id(rstd)] = (rstd, result)
    return result, rstd


def _found(context: Context, rstd: Field, x: Field, over: Sequence[int], eps: float = 0.0) -> Normalised:
    kept = context.made.get(("normalised", id(rstd)))
    if kept is None:
        raise NoRuleError("backward of a norm whose forward pass was not seen")
    result: Normalised = kept[1]
    return result


def _as(rstd: Field, shape: Sequence[int], context: Context) -> Field:
    """1/σ with the shape of the output that holds it."""
    leaf = Leaf(constant(shape, rstd.table.average))
    context.made["normalised", id(leaf)] = (leaf, context.made["normalised", id(rstd)][1])
    return leaf


def _affine(shape: Sequence[int], x: Field, weight: Field | None, bias: Field | None) -> Field:
    if weight is not None:
        x = apply(None, "mul", [x, weight], {}, shape)  # type: ignore[arg-type]
    if bias is not None:
        x = apply(None, "add", [x, bias], {}, shape)  # type: ignore[arg-type]
    return x


def _along(context: Context, weight: Field | None, shape: Sequence[int], dim: int) -> Field | None:
    """A vector of channels, shaped to broadcast along a dimension."""
    if weight is None:
        return None
    return view(context, None, weight, [n if d == dim else 1 for d, n in enumerate(shape)])


@rule("native_layer_norm")
def layer_norm(
    context: Context,
    output: Any,
    x: Field,
    shape: Sequence[int],
    weight: Field | None,
    bias: Field | None,
    eps: float,
) -> list[Field]:
    """Over the last dimensions."""
    over = range(len(x.shape) - len(shape), len(x.shape))
    hat, rstd = _normalised(context, x, over, eps)
    return [
        _affine(x.shape, hat, weight, bias),
        Leaf(constant(output[1].shape, 0.0)),
        _as(rstd, output[2].shape, context),
    ]


@rule("native_layer_norm_backward")
def layer_norm_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    shape: Sequence[int],
    mean: Field,
    rstd: Field,
    weight: Field | None,
    bias: Field | None,
    mask: Sequence[bool],
) -> list[Field | None]:
    """Cotangents of input, weight and bias."""
    over = range(len(x.shape) - len(shape), len(x.shape))
    hat = _found(context, rstd, x, over)
    rest = range(len(x.shape) - len(shape))
    inner = g if weight is None else apply(None, "mul", [g, weight], {}, x.shape)  # type: ignore[arg-type]
    return [
        NormCotangent(inner, hat) if mask[0] else None,
        summed(context, product(x.shape, g, hat), rest, shape, keep=False) if mask[1] else None,
        summed(context, g, rest, shape, keep=False) if mask[2] else None,
    ]


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(
    context: Context, output: Any, x: Field, shape: Sequence[int], weight: Field | None, eps: float | None
) -> list[Field]:
    """Over the last dimensions, without centring; the default eps is that of float32."""
    over = range(len(x.shape) - len(shape), len(x.shape))
    hat, rstd = _normalised(context, x, over, 1.1920929e-07 if eps is None else eps, centring=False)
    return [_affine(x.shape, hat, weight, None), _as(rstd, output[1].shape, context)]


@rule("_fused_rms_norm_backward")
def rms_norm_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    shape: Sequence[int],
    rstd: Field,
    weight: Field | None,
    mask: Sequence[bool],
) -> list[Field | None]:
    """Cotangents of input and weight."""
    hat = _found(context, rstd, x, ())
    rest = range(len(x.shape) - len(shape))
    inner = g if weight is None else apply(None, "mul", [g, weight], {}, x.shape)  # type: ignore[arg-type]
    return [
        NormCotangent(inner, hat) if mask[0] else None,
        summed(context, product(x.shape, g, hat), rest, shape, keep=False) if mask[1] else None,
    ]


@rule("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(
    context: Context, output: Any, x: Field, weight: Field | None, bias: Field | None, *rest: Any
) -> list[Field]:
    """Over all dimensions but the channels; in eval mode by the running statistics."""
    *running, training, _momentum, eps = rest
    if not training:
        if len(running) != 2:
            raise NoRuleError("running statistics that are not known")
        centre = apply(None, "sub", [x, _along(context, running[0], x.shape, 1)], {}, x.shape)  # type: ignore[arg-type]
        variance = _along(context, running[1], x.shape, 1)
        assert variance is not None
        scale = (variance.table.average + eps) ** -0.5
        hat: Field = product(x.shape, centre, scale)
        y = _affine(x.shape, hat, _along(context, weight, x.shape, 1), _along(context, bias, x.shape, 1))
        empty = Leaf(constant(output[1].shape, 0.0))
        return [y, empty, empty]
    over = [d for d in range(len(x.shape)) if d != 1]
    hat, rstd = _normalised(context, x, over, eps)
    y = _affine(x.shape, hat, _along(context, weight, x.shape, 1), _along(context, bias, x.shape, 1))
    return [y, Leaf(constant(output[1].shape, 0.0)), _as(rstd, output[2].shape, context)]


@rule("native_batch_norm_backward", "cudnn_batch_norm_backward")
def batch_norm_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    weight: Field | None,
    mean: Field | None,
    variance: Field | None,
    save_mean: Field | None,
    save_rstd: Field | None,
    train: bool,
    eps: float,
    mask: Sequence[bool],
) -> list[Field | None]:
    """Cotangents of input, weight and bias."""
    rest = [d for d in range(len(x.shape)) if d != 1]
    wide = _along(context, weight, x.shape, 1)
    inner = g if wide is None else apply(None, "mul", [g, wide], {}, x.shape)  # type: ignore[arg-type]
    if train:
        assert save_rstd is not None
        hat: Field = _found(context, save_rstd, x, rest)
        gx: Field = NormCotangent(inner, hat)  # type: ignore[arg-type]
    else:
        assert mean is not None
        assert variance is not None
        scale = (variance.table.average + eps) ** -0.5
        centre = apply(None, "sub", [x, _along(context, mean, x.shape, 1)], {}, x.shape)  # type: ignore[arg-type]
        hat, gx = product(x.shape, centre, scale), product(x.shape, inner, scale)
    channels = (x.shape[1],)
    return [
        gx if mask[0] else None,
        summed(context, product(x.shape, g, hat), rest, channels, keep=False) if mask[1] else None,
        summed(context, g, rest, channels, keep=False) if mask[2] else None,
    ]


def _grouped(x: Sequence[int], groups: int) -> tuple[int, ...]:
    return (x[0], groups, x[1] // groups, *x[2:])


@rule("native_group_norm")
def group_norm(
    context: Context,
    output: Any,
    x: Field,
    weight: Field | None,
    bias: Field | None,
    batch: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> list[Field]:
    """Over the channels of a group and all positions."""
    split = _grouped(x.shape, groups)
    hat, rstd = _normalised(context, view(context, None, x, split), range(2, len(split)), eps)
    flat = view(context, None, hat, x.shape)
    y = _affine(x.shape, flat, _along(context, weight, x.shape, 1), _along(context, bias, x.shape, 1))
    return [y, Leaf(constant(output[1].shape, 0.0)), _as(rstd, output[2].shape, context)]


@rule("native_group_norm_backward")
def group_norm_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    mean: Field,
    rstd: Field,
    weight: Field | None,
    batch: int,
    channels: int,
    size: int,
    groups: int,
    mask: Sequence[bool],
) -> list[Field | None]:
    """Cotangents of input, weight and bias."""
    split = _grouped(x.shape, groups)
    hat = _found(context, rstd, x, ())
    flat = view(context, None, hat, x.shape)
    wide = _along(context, weight, x.shape, 1)
    inner = g if wide is None else apply(None, "mul", [g, wide], {}, x.shape)  # type: ignore[arg-type]
    rest = [d for d in range(len(x.shape)) if d != 1]
    gx = NormCotangent(view(context, None, inner, split), hat)
    return [
        view(context, None, gx, x.shape) if mask[0] else None,
        summed(context, product(x.shape, g, flat), rest, (x.shape[1],), keep=False) if mask[1] else None,
        summed(context, g, rest, (x.shape[1],), keep=False) if mask[2] else None,
    ]
