"""Lengths of vectors, and weights that are a length times a direction.

    ‖x‖₂ = √Σ x²,   ‖x‖₁ = Σ |x|,      w = g v/‖v‖.

A sum over many entries hardly varies, so its root is taken as a function of a Gaussian sum.

References:
    Salimans & Kingma, "Weight Normalization", 2016: equation 2, and equation 3 for its gradients.
"""

from __future__ import annotations

from typing import Any

import torch

from evenflow.predict.fields import Field
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.views import view


def _length(context: Context, shape: Any, x: Field, order: float, dims: Any, keep: bool) -> Field:
    """Of the vectors along some dimensions."""
    over = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    wide = [1 if d in {int(o) % max(len(x.shape), 1) for o in over} else n for d, n in enumerate(x.shape)]
    if order == 1:
        sizes = apply(torch.abs, "abs", [x], {}, x.shape)
        return view(context, None, summed(context, sizes, list(over), wide, keep=True), tuple(shape))
    if order != 2:
        raise NoRuleError(f"a norm of order {order:g}")
    total = summed(context, product(x.shape, x, x), list(over), wide, keep=True)
    return apply(torch.sqrt, "sqrt", [view(context, None, total, tuple(shape))], {}, shape)


@rule("linalg_vector_norm")
def vector_norm(
    context: Context, output: Any, x: Field, order: float = 2, dims: Any = None, keep: bool = False, **_: Any
) -> Field:
    """‖x‖ along some dimensions, all of them for None."""
    return _length(context, output.shape, x, order, dims, keep)


@rule("norm")
def norm(
    context: Context, output: Any, x: Field, order: float | None = 2, dims: Any = None, keep: bool = False
) -> Field:
    """As it was called before."""
    return _length(context, output.shape, x, 2 if order is None else order, dims, keep)


def _beside(v: Field, dim: int) -> list[int]:
    return [d for d in range(len(v.shape)) if d != dim % len(v.shape)]


@rule("_weight_norm_interface")
def weight_norm(context: Context, output: Any, v: Field, g: Field, dim: int = 0) -> list[Field]:
    """Weights g v/‖v‖, with one length for each index along a dimension, and the lengths."""
    length = _length(context, output[1].shape, v, 2, _beside(v, dim), True)
    scale = apply(torch.ops.aten.div.Tensor, "div", [g, length], {}, g.shape)
    return [product(v.shape, v, scale), length]


@rule("_weight_norm_interface_backward")
def weight_norm_backward(
    context: Context, output: Any, gradient: Field, v: Field, g: Field, length: Field, dim: int
) -> list[Field]:
    """Gradients of v, g/‖v‖ (∂w − (∂w·v̂) v̂), and of g, ∂w·v̂, with v̂ = v/‖v‖."""
    inverse = apply(torch.reciprocal, "reciprocal", [length], {}, length.shape)
    unit = product(v.shape, v, inverse)
    along = summed(context, product(v.shape, gradient, unit), _beside(v, dim), length.shape, keep=True)
    across = apply(None, "sub", [gradient, product(v.shape, unit, along)], {}, v.shape)  # type: ignore[arg-type]
    return [product(v.shape, across, product(g.shape, g, inverse)), along]
