"""Inner products of a gradient with the tensor that it is a gradient of.

The gradient g = Wᵀh of the input of a linear layer y = W x is as good as independent
of x, entry by entry. Summed over all entries it is not, for

    Σ_i g_i x_i = Σ_j h_j y_j,

and h depends on y where y goes into a nonlinear function. A gate silu(a)·b has
h_a = h b silu'(a), h_b = h silu(a), and both of its layers add the same h a b / 2 to
the left side, for small a. The right side knows. Such sums are the gradients of
the small tensors of an RMSNorm that is written as pow, mean, rsqrt and mul.

Where rows were looked up before, x_s = a_t(s), as a mixture of experts does, the gradient of a
is that of x added up by row, and so is the sum: Σ_i g_ti a_ti = Σ_s→t Σ_j h_sj y_sj.

References:
    Euler's theorem on homogeneous functions: Σ_i x_i ∂f/∂x_i = k f at degree k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from evenflow.predict.expressions import Expression, Term, as_terms
from evenflow.predict.fields import Field, Leaf, Made, cross
from evenflow.predict.lazy import cached_property
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.euler import (
    before_norm,
    collected,
    flat,
    paths,
    projected,
    summed_last,
    unfolded,
)
from evenflow.predict.rules.joining import Joined
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.tied import aligned_with
from evenflow.predict.rules.views import cut, view
from evenflow.predict.scalar import VARIABLE
from evenflow.predict.table import Table

PRODUCT = ("contract", "ik,kj->ij")
GROUPED = ("contract", "si,sij->sj")
"""Rows times the matrix of the group that each is in."""


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
    from evenflow.predict.rules.gram import of_entries

    added = of_entries if x.cotangent else None
    return Made(shape, (x,), lambda t: t.summed(over, keep=keep), ("sum", over, keep), added)


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


@dataclass(frozen=True)
class _Use:
    """A product y = W a that a gradient Wᵀh came through.

    Attributes:
        h: The gradient of y.
        y: The product.
        operand: a; where y has rows looked up in it, that which they were looked up in.
        sent: The gradient of ``operand`` where rows were looked up: by it they are added up again.
        scale, apart: s and ρ of what the gradient is multiplied by, s·a + ρ, ρ orthogonal to a.
    """

    h: Field
    y: Field
    operand: Field
    sent: Made | None
    scale: Term
    apart: list[Term]


def _moved_term(context: Context, term: Term, wide: Sequence[int], shape: Sequence[int]) -> Field | None:
    gradients = [(field, f) for field, f in term.functions if field.cotangent]
    if len(gradients) != 1 or not gradients[0][1].linear:
        return None
    rest = Term(term.factor, tuple((field, f) for field, f in term.functions if not field.cotangent))
    sums: dict[tuple[int, int, tuple[int, ...]], tuple[Field, _Use]] = {}
    known: Field | None = None
    for factor, path in paths(context, gradients[0][0]):
        use = _through_weight(context, path, rest, wide)
        if use is None:
            return None
        if use.apart:
            gradient = Term(factor, ((path, VARIABLE),))
            last = (len(wide) - 1,)
            each = by_entries(Expression(wide, [gradient.times(part) for part in use.apart]), last, wide[:-1])
            known = _plus(known, view(context, None, each, shape), shape)
        through = aligned_with(context, use.h) or before_norm(context, use.h, use.y)
        if through is not None and use.sent is None:
            each = product(shape, view(context, None, through, shape), factor)
            each = product(shape, each, Expression(shape, [use.scale]))
            known = _plus(known, each, shape)
            continue
        for h, y in _side_by_side(context, use.h, use.y):
            both = product(y.shape, product(y.shape, h, y), factor)
            key = id(use.operand), id(use.sent), y.shape
            if key in sums:
                both = apply(None, "add", [sums[key][0], both], {}, y.shape)  # type: ignore[arg-type]
            sums[key] = both, use
    total = known
    for both, use in sums.values():
        each = summed_last(context, both)
        if use.sent is not None:
            each = _sent_back(use.sent, each)
        each = view(context, None, each, shape)
        each = product(shape, each, Expression(shape, [use.scale]))
        total = _plus(total, each, shape)
    return total


def _side_by_side(context: Context, h: Field, y: Field) -> Iterator[tuple[Field, Field]]:
    """Parts of a gradient that was joined along its last dimension, with those of its tensor."""
    joined = flat(h)
    last = len(joined.shape) - 1
    if not isinstance(joined, Joined) or joined.dim != last or joined.shape[-1] != h.shape[-1]:
        yield h, y
        return
    y, start = view(context, None, y, joined.shape), 0
    for part in joined.parts:
        stop = start + part.shape[-1]
        if part.mean_square:
            yield part, cut(context, y, last, start, stop)
        start = stop


def _sent_back(sent: Made, rows: Field) -> Field:
    """A number of each row that was looked up, added up as their gradients are."""
    shape = sent.shape[:-1]
    return Made(shape, (rows,), sent.rule, ("scatter", sent.key[1], shape))  # type: ignore[index]


def _plus(x: Field | None, y: Field, shape: Sequence[int]) -> Field:
    return y if x is None else apply(None, "add", [x, y], {}, shape)  # type: ignore[arg-type]


def _through_weight(context: Context, path: Field, rest: Term, wide: Sequence[int]) -> _Use | None:
    path = flat(path)
    sent: Made | None = None
    if isinstance(path, Made) and path.key[0] == "scatter":  # type: ignore[index]
        sent, path = path, flat(path.parts[0])
    if not isinstance(path, Made) or path.key not in (PRODUCT, GROUPED):
        return None
    h, weight = path.parts
    if path.key == GROUPED and isinstance(weight, Made):
        weight = weight.parts[0]  # before each row got its own
    found = weight_of(weight)
    if found is None or not h.cotangent:
        return None
    uses = []
    for operand, y in context.made.get(("applied", found[0], not found[1]), ()):
        source = operand if sent is None else _looked_up(operand, sent)
        split = None if source is None else _projected(context, rest, source, wide)
        if source is not None and split is not None:
            uses.append(_Use(h, y, source, sent, *split))
    exact = [use for use in uses if not use.apart]
    return exact[0] if exact else uses[0] if len(uses) == 1 else None


def _looked_up(rows: Field, sent: Made) -> Field | None:
    """What rows were looked up in, if at the places where their gradients are sent."""
    if not isinstance(rows, Made) or rows.key[0] != "gather" or rows.key[1] != sent.key[1]:  # type: ignore[index]
        return None
    return rows.parts[0]


def _projected(
    context: Context, rest: Term, operand: Field, wide: Sequence[int]
) -> tuple[Term, list[Term]] | None:
    if math.prod(operand.shape) != math.prod(wide) or operand.shape[-1] != wide[-1]:
        return None
    terms = as_terms(view(context, None, operand, wide))
    return projected(rest, terms[0]) if len(terms) == 1 else None


def weight_of(x: Field) -> tuple[int, bool] | None:
    """Which matrix of independent entries, or stack of them, a field is, and whether it is transposed."""
    turned = False
    while isinstance(x, Made) and x.key in (("permute", (1, 0)), ("permute", (0, 2, 1))):
        x, turned = x.parts[0], not turned
    if not isinstance(x, Leaf) or x.cotangent or len(x.shape) not in (2, 3) or not x.table.centred:
        return None
    return id(x), turned
