"""Inner products of a gradient with the tensor that it is a gradient of.

The gradient g = Wᵀh of the input of a linear layer y = W x is as good as independent
of x, entry by entry. Summed over all entries it is not, for

    Σ_i g_i x_i = Σ_j h_j y_j,

and h depends on y where y goes into a nonlinear function. A gate silu(a)·b has
h_a = h b silu'(a), h_b = h silu(a), and both of its layers add the same h a b / 2 to
the left side, for small a. The right side knows. Such sums are the gradients of
the small tensors of an RMSNorm that is written as pow, mean, rsqrt and mul.

References:
    Euler's theorem on homogeneous functions: Σ_i x_i ∂f/∂x_i = k f at degree k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import final

from evenflow.predict.expressions import Expression, Term, as_terms
from evenflow.predict.fields import Field, Leaf, Made, cross
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.euler import before_norm, collected, flat, paths, projected, unfolded
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.tied import aligned_with
from evenflow.predict.rules.views import view
from evenflow.predict.scalar import VARIABLE
from evenflow.predict.table import Table

PRODUCT = ("contract", "ik,kj->ij")


@final
class Inner(Field):
    """Such a sum.

    Args:
        direct: The left side, by which it covaries with other tensors.
        moved: The right side, by which its own moments are found.
    """

    def __init__(self, direct: Field, moved: Field) -> None:
        super().__init__(direct.shape, cotangent=True)
        self.direct, self.moved = direct, moved
        self.spread_from = (direct,)

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        return self.moved.table

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.direct.tags

    def cross(self, other: Inner) -> Table | None:
        """E of two such."""
        return cross(self.direct, other.direct)

    def cross_through(self, other: Field) -> Table | None:
        """E with another cotangent."""
        return cross(self.direct, other)


def remember(context: Context, a: Field, weight: tuple[int, bool], result: Field) -> None:
    """Note that the product of ``a`` with a weight was taken."""
    context.made.setdefault(("applied", *weight), []).append((a, result))


def by_entries(x: Field, over: tuple[int, ...], shape: Sequence[int], *, keep: bool = False) -> Field:
    """Σ x over some dimensions from the moments of x: the left side."""
    return Made(shape, (x,), lambda t: t.summed(over, keep=keep), ("sum", over, keep))


def moved(context: Context, x: Field, over: Sequence[int], shape: Sequence[int]) -> Field | None:
    """Σ x over the last dimension by the right side; None if x is no such product."""
    if not isinstance(x, Expression) or tuple(over) != (len(x.shape) - 1,) or not x.cotangent:
        return None
    terms = collected([part for term in x.terms for part in unfolded(term)])
    parts = [_moved_term(context, term, x.shape, shape) for term in terms]
    total: Field | None = None
    for part in parts:
        if part is None:
            return None
        total = _plus(total, part, shape)
    return total


def _moved_term(context: Context, term: Term, wide: Sequence[int], shape: Sequence[int]) -> Field | None:
    gradients = [(field, f) for field, f in term.functions if field.cotangent]
    if len(gradients) != 1 or not gradients[0][1].linear:
        return None
    rest = Term(term.factor, tuple((field, f) for field, f in term.functions if not field.cotangent))
    sums: dict[tuple[int, int], tuple[Field, Term]] = {}
    known: Field | None = None
    for factor, path in paths(gradients[0][0]):
        found = _through_weight(context, path, rest, wide)
        if found is None:
            return None
        h, y, operand, scale, apart = found
        if apart:
            gradient = Term(factor, ((path, VARIABLE),))
            last = (len(wide) - 1,)
            each = by_entries(Expression(wide, [gradient.times(part) for part in apart]), last, wide[:-1])
            known = _plus(known, view(context, None, each, shape), shape)
        through = aligned_with(context, h) or before_norm(context, h, y)
        if through is not None:
            each = product(shape, view(context, None, through, shape), factor)
            each = product(shape, each, Expression(shape, [scale]))
            known = _plus(known, each, shape)
            continue
        both = product(y.shape, product(y.shape, h, y), factor)
        key = id(operand), y.shape[-1]
        if key in sums:
            both = apply(None, "add", [sums[key][0], both], {}, y.shape)  # type: ignore[arg-type]
        sums[key] = both, scale
    total = known
    for both, scale in sums.values():
        each = view(context, None, _summed_last(context, both), shape)
        each = product(shape, each, Expression(shape, [scale]))
        total = _plus(total, each, shape)
    return total


def _plus(x: Field | None, y: Field, shape: Sequence[int]) -> Field:
    return y if x is None else apply(None, "add", [x, y], {}, shape)  # type: ignore[arg-type]


def _summed_last(context: Context, x: Field) -> Field:
    from evenflow.predict.rules.reductions import summed

    return summed(context, x, [len(x.shape) - 1], x.shape[:-1], keep=False)


def _through_weight(
    context: Context, path: Field, rest: Term, wide: Sequence[int]
) -> tuple[Field, Field, Field, Term, list[Term]] | None:
    """H, y = W a and a of a gradient Wᵀh, with s and ρ of ``rest`` = s·a + ρ, ρ orthogonal to a."""
    path = flat(path)
    if not isinstance(path, Made) or path.key != PRODUCT:
        return None
    h, weight = path.parts
    found = weight_of(weight)
    if found is None or not h.cotangent:
        return None
    uses = []
    for operand, y in context.made.get(("applied", found[0], not found[1]), ()):
        split = _projected(context, rest, operand, wide)
        if split is not None:
            uses.append((h, y, operand, *split))
    exact = [use for use in uses if not use[4]]
    return exact[0] if exact else uses[0] if len(uses) == 1 else None


def _projected(
    context: Context, rest: Term, operand: Field, wide: Sequence[int]
) -> tuple[Term, list[Term]] | None:
    if math.prod(operand.shape) != math.prod(wide) or operand.shape[-1] != wide[-1]:
        return None
    terms = as_terms(view(context, None, operand, wide))
    return projected(rest, terms[0]) if len(terms) == 1 else None


def weight_of(x: Field) -> tuple[int, bool] | None:
    """Which matrix of independent entries a field is, and whether it is transposed."""
    turned = False
    while isinstance(x, Made) and x.key == ("permute", (1, 0)):
        x, turned = x.parts[0], not turned
    if not isinstance(x, Leaf) or x.cotangent or len(x.shape) != 2 or not x.table.centred:
        return None
    return id(x), turned
