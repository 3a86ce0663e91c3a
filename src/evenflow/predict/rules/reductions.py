"""Sums and means over dimensions, and moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenflow.predict.fields import Field
from evenflow.predict.pointwise import product
from evenflow.predict.rules.adjoint import Inner, by_entries, moved
from evenflow.predict.rules.registry import Context, rule


def summed(context: Context, x: Field, dims: Sequence[int], shape: Sequence[int], *, keep: bool) -> Field:
    """``x.sum(dims)``; a sum of terms is summed term by term."""
    over = tuple(sorted(int(d) % len(x.shape) for d in dims)) if x.shape else ()
    if all(x.shape[d] == 1 for d in over):
        from evenflow.predict.rules.views import view

        return view(context, None, x, tuple(shape))
    direct = by_entries(x, over, shape, keep=keep)
    by_outputs = moved(context, x, over, shape)
    return direct if by_outputs is None else Inner(direct, by_outputs)


def _over(x: Field, dims: Any) -> list[int]:
    if dims is None:
        return list(range(len(x.shape)))
    if isinstance(dims, int):
        return [dims]
    return list(dims) or list(range(len(x.shape)))


@rule("sum")
def sum_(context: Context, output: Any, x: Field, dims: Any = None, keepdim: bool = False) -> Field:
    """Σ x."""
    return summed(context, x, _over(x, dims), output.shape, keep=keepdim)


@rule("mean")
def mean(context: Context, output: Any, x: Field, dims: Any = None, keepdim: bool = False) -> Field:
    """Σ x / n."""
    over = _over(x, dims)
    count = 1
    for d in over:
        count *= x.shape[d]
    return product(output.shape, summed(context, x, over, output.shape, keep=keepdim), 1 / count)
