"""Losses and their cotangents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evenflow.predict.axes import plain
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.softmax import LogSoftmax
from evenflow.predict.rules.tied import share_of_own
from evenflow.predict.rules.views import view
from evenflow.predict.table import Table, constant


@rule("mse_loss")
def mse_loss(context: Context, output: Any, x: Field, target: Field, reduction: int = 1) -> Field:
    """E (x − y)²: a loss is reported by its mean."""
    difference = apply(None, "sub", [x, target], {}, x.shape)  # type: ignore[arg-type]
    if reduction == 0:
        return product(output.shape, difference, difference)
    count = difference.table.mean_square * (1 if reduction == 1 else output.numel())
    return Leaf(constant(output.shape, count))


@rule("mse_loss_backward")
def mse_loss_backward(
    context: Context, output: Any, g: Field, x: Field, target: Field, reduction: int = 1
) -> Field:
    """2 (x − y) g, over the number of entries for a mean."""
    difference = apply(None, "sub", [x, target], {}, x.shape)  # type: ignore[arg-type]
    scale = 2 / (output.numel() if reduction == 1 else 1)
    return product(output.shape, product(output.shape, difference, g), scale)


def one_hot(targets: torch.Tensor, classes: int, ignored: int, shape: Sequence[int]) -> Table:
    """The table of one-hot rows, zero where a target is ignored.

    Rows i ≠ i' agree in their class as often as the actual targets do.
    """
    flat = targets.reshape(-1)
    valid = flat != ignored
    n, count = flat.numel(), int(valid.sum())
    share = count / n
    _, repeats = torch.unique(flat[valid], return_counts=True)
    pairs = float((repeats.double() * (repeats - 1)).sum())
    second = np.zeros((2, 2))
    second[1, 1] = share / classes
    if n > 1:
        second[0, 1] = pairs / (n * (n - 1.0)) / classes
        if classes > 1:
            second[0, 0] = (count * (count - 1.0) - pairs) / (n * (n - 1.0)) / (classes * (classes - 1.0))
    dims = tuple((plain(size),) if size > 1 else () for size in (n, classes))
    table = Table(
        dims,
        second[tuple(slice(None) if size > 1 else 1 for size in (n, classes))],
        np.full((1,) * sum(map(bool, dims)), share / classes),
    )
    if len(shape) > 2:  # [N, V, d1, …] with targets [N, d1, …]
        table = table.viewed([shape[0], *shape[2:], classes]).permuted(
            [0, len(shape) - 1, *range(1, len(shape) - 1)]
        )
    return table


@rule("nll_loss_forward", "nll_loss2d_forward", "nll_loss", "nll_loss2d")
def nll_loss(
    context: Context, output: Any, x: Field, target: Field, weight: Any, reduction: int, ignored: int
) -> list[Field]:
    """−x[target], averaged or summed."""
    value = -x.table.average
    if (
        isinstance(x, LogSoftmax)
        and x.own is not None
        and isinstance(target, Leaf)
        and target.values is not None
    ):
        value -= x.own.height * (share_of_own(x.own, target.values, ignored) - 1 / x.own.classes)
    if reduction == 2:
        value *= target.values.numel() if isinstance(target, Leaf) and target.values is not None else 1
    return [Leaf(constant(output[0].shape, value)), Leaf(constant((), 1.0))]


@rule("nll_loss_backward", "nll_loss2d_backward")
def nll_loss_backward(
    context: Context,
    output: Any,
    g: Field,
    x: Field,
    target: Field,
    weight: Any,
    reduction: int,
    ignored: int,
    total: Any,
) -> Field:
    """−1 at the target, over the number of targets for a mean."""
    if not isinstance(target, Leaf) or target.values is None:
        raise NoRuleError("targets that are not known")
    if weight is not None:
        context.remarks["class weights of a loss counted as 1"] += 1
    shape = output.shape if len(output.shape) > 1 else (1, *output.shape)
    hot: Field = Leaf(one_hot(target.values, shape[1], ignored, shape), known=True)
    context.made["labels", id(hot)] = (hot, target.values, ignored)
    if len(output.shape) == 1:
        hot = view(context, None, hot, output.shape)
    count = int((target.values != ignored).sum()) if reduction == 1 else 1
    if reduction == 0:
        g = view(context, None, g, (g.shape[0], 1, *g.shape[1:]))
    return product(output.shape, product(output.shape, hot, g), -1 / count)


@rule("binary_cross_entropy_with_logits")
def bce_with_logits(context: Context, output: Any, x: Field, target: Field, *args: Any) -> Field:
    """log(1 + e^x) − t x, averaged (its reduction is the last argument)."""
    reduction = args[2] if len(args) > 2 else 1
    soft = apply(torch.nn.functional.softplus, "softplus", [x], {}, x.shape)
    value = soft.table.average - target.table.average * x.table.average
    return Leaf(constant(output.shape, value if reduction == 1 else value * math.prod(x.shape)))


@rule("binary_cross_entropy")
def bce(
    context: Context, output: Any, x: Field, target: Field, weight: Any = None, reduction: int = 1
) -> Field:
    """−t log x − (1 − t) log(1 − x)."""
    t = target.table.average
    log = [apply(f, n, [x], {}, x.shape).table.average for f, n in ((torch.log, "log"), (_log_rest, "log1m"))]
    return Leaf(constant(output.shape, -(t * log[0] + (1 - t) * log[1])))


def _log_rest(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(-x)


@rule("binary_cross_entropy_backward")
def bce_backward(
    context: Context, output: Any, g: Field, x: Field, target: Field, weight: Any = None, reduction: int = 1
) -> Field:
    """(x − t) / (x (1 − x)) g, over the number of entries for a mean."""
    up = apply(_one_over_rest, "up", [x], {}, x.shape)
    down = apply(torch.reciprocal, "reciprocal", [x], {}, x.shape)
    # (x − t)/(x(1 − x)) = (1 − t)/(1 − x) − t/x
    rest = apply(None, "rsub", [target, 1], {}, x.shape)  # type: ignore[arg-type]
    slope = apply(None, "sub", [product(x.shape, rest, up), product(x.shape, target, down)], {}, x.shape)  # type: ignore[arg-type]
    scale = 1 / output.numel() if reduction == 1 else 1.0
    return product(output.shape, product(output.shape, slope, g), scale)


def _one_over_rest(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 - x)


@rule("smooth_l1_loss", "huber_loss")
def smooth_l1(
    context: Context, output: Any, x: Field, target: Field, reduction: int = 1, beta: float = 1.0
) -> Field:
    """Quadratic near 0, linear beyond."""
    difference = apply(None, "sub", [x, target], {}, x.shape)  # type: ignore[arg-type]
    value = apply(torch.abs, "abs", [difference], {}, x.shape)
    return Leaf(constant(output.shape, value.table.average)) if reduction else value


@rule("smooth_l1_loss_backward", "huber_loss_backward")
def smooth_l1_backward(
    context: Context, output: Any, g: Field, x: Field, target: Field, reduction: int, beta: float
) -> Field:
    """clamp((x − y)/β, −1, 1) g (Huber: clamp(x − y, −δ, δ), the same at β = δ = 1)."""
    difference = apply(None, "sub", [x, target], {}, x.shape)  # type: ignore[arg-type]
    slope = apply(torch.clamp, "clamp", [product(x.shape, difference, 1 / beta), -1.0, 1.0], {}, x.shape)
    scale = 1 / output.numel() if reduction == 1 else 1.0
    return product(output.shape, product(output.shape, slope, g), scale)
