"""Comparisons of random numbers, and choices by them.

A truth value is 0 or 1, and where a random number is compared it is a function of that
number like any other. So a hand-written activation, where(x > 0, x, a x), and the backward
pass of clamp and maximum, which look where the forward pass was cut, are

    where(m, x, y) = m x + (1 − m) y,   m = [x > c].

Accuracy: that of :mod:`evenflow.predict.scalar`, which knows kinks at 0; a step elsewhere is off by 1 % of
the probability density there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.indexing import HUGE, chosen
from evenflow.predict.rules.registry import Context, NoRuleError, Rule, rule
from evenflow.predict.table import constant


def _comparing(op: Callable[..., Any]) -> Rule:
    def compare(context: Context, output: Any, x: Any, y: Any) -> Field:
        for each in (x, y):
            if isinstance(each, Leaf) and each.values is not None and each.values.numel() > 1:
                raise NoRuleError("random numbers compared with known ones that differ")
        if isinstance(x, Field) and isinstance(y, Field):
            x, y = apply(None, "sub", [x, y], {}, output.shape), 0.0  # type: ignore[arg-type]
        return apply(op, op.__name__, [x, y], {}, output.shape)

    return compare


for _op in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge):
    rule(_op.__name__)(_comparing(_op))


@rule("logical_not", "bitwise_not")
def negated(context: Context, output: Any, m: Field) -> Field:
    """1 − m."""
    return apply(None, "rsub", [m, 1.0], {}, output.shape)  # type: ignore[arg-type]


@rule("logical_and", "bitwise_and")
def both(context: Context, output: Any, m: Field, n: Field) -> Field:
    """The product m n."""
    return product(output.shape, m, n)


@rule("logical_or", "bitwise_or")
def either(context: Context, output: Any, m: Field, n: Field) -> Field:
    """1 − (1 − m)(1 − n)."""
    neither = product(output.shape, negated(context, m, m), negated(context, n, n))
    return apply(None, "rsub", [neither, 1.0], {}, output.shape)  # type: ignore[arg-type]


@rule("where")
def where(context: Context, output: Any, *args: Any) -> Field:
    """Entries of one where a condition holds, of the other elsewhere."""
    if len(args) != 3:
        raise NoRuleError("a search for non-zero entries")
    return _chosen(context, output, *args)


@rule("masked_fill")
def masked_fill(context: Context, output: Any, x: Field, mask: Field, value: Any) -> Field:
    """Entries, but a number where the mask holds."""
    return _chosen(context, output, mask, value, x)


def _chosen(context: Context, output: Any, mask: Field, yes: Any, no: Any) -> Field:
    if isinstance(mask, Leaf) and mask.values is not None:
        return chosen(output.shape, mask.values, yes, no)
    if any(isinstance(value, (int, float)) and abs(value) > HUGE for value in (yes, no)):
        raise NoRuleError("scores hidden where random numbers say so")
    parts = [
        product(output.shape, holds, value)
        for holds, value in ((mask, yes), (negated(context, mask, mask), no))
        if isinstance(value, Field) or value != 0
    ]
    if not parts:
        return Leaf(constant(output.shape, 0.0))
    return parts[0] if len(parts) == 1 else apply(None, "add", parts, {}, output.shape)  # type: ignore[arg-type]
