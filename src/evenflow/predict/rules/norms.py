"""Normalisation: batch, layer, group, instance and RMS norms.

What they do to tables is in :mod:`evenflow.predict.rules.normalised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.normalised import Normalised, NormCotangent, depends
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import view
from evenflow.predict.table import constant


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


def _cotangent(g: Field, hat: Normalised) -> Field:
    return NormCotangent(g, hat, product(g.shape, g, hat) if depends(g, hat) else None)


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
        _cotangent(inner, hat) if mask[0] else None,
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
        _cotangent(inner, hat) if mask[0] else None,
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
        gx: Field = _cotangent(inner, hat)  # type: ignore[arg-type]
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
    along = view(context, None, product(x.shape, inner, flat), split) if depends(inner, hat) else None
    gx = NormCotangent(view(context, None, inner, split), hat, along)
    return [
        view(context, None, gx, x.shape) if mask[0] else None,
        summed(context, product(x.shape, g, flat), rest, (x.shape[1],), keep=False) if mask[1] else None,
        summed(context, g, rest, (x.shape[1],), keep=False) if mask[2] else None,
    ]
