"""Random tensors, and the second moments between any two of them.

A :class:`Field` is a tensor of the tape whose entries are random: it has a
table (:mod:`evenflow.predict.table`) and it remembers how it was made. Most ops
act on tensors that share nothing, and for those the table is all there is to
know. Where tensors do share something, as the states of a recurrent net share
its weights, :func:`cross` finds E x_i y_j on demand, from how both were made:

    x = op(a, b), y = op(a', b')   →   K_xy from K_aa' and K_bb'   by op's own rule,

so each rule is written once, and a tensor's own table is the case x = y. Tensors
not made alike count as independent. *Tags* (one bit per independent source)
settle most pairs at once: no common bit, no covariance.

The gradient-independence assumption of mean-field theory enters here and
nowhere else: W in the forward pass and Wᵀ in the backward pass are different
ops, hence independent.

References:
    Yang, "Tensor Programs II: Neural Tangent Kernel for Any Architecture",
    2020: all second moments of a wide random net follow from its program;
    its "simple GIA check" says when Wᵀ may be taken as independent of W.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import final

import numpy as np
import torch

from evenflow.predict import reuse
from evenflow.predict.combine import align, independent_pair
from evenflow.predict.lazy import cached_property
from evenflow.predict.table import NEGLIGIBLE, Table, measured

_sources = itertools.count()


class Field:
    """A random tensor.

    Attributes:
        shape: Its shape.
        cotangent: Whether it is linear in the gradient of the loss. Such fields do
            not covary with those of the forward pass, unless they are mixed.
        keep: Entries that count in a softmax (a mask was added), as a boolean
            tensor that broadcasts against the last dimensions; None for all.
        hidden: What stands at the others; the table does not count them.
    """

    def __init__(self, shape: Sequence[int], *, cotangent: bool = False) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.cotangent = cotangent
        self.keep: torch.Tensor | None = None
        self.hidden = 0.0

    @cached_property
    @abstractmethod
    def table(self) -> Table:
        """Means and second moments."""

    @cached_property
    @abstractmethod
    def tags(self) -> int:
        """Bits of the sources through which it can covary with another field."""

    @cached_property
    def mixed(self) -> bool:
        """Whether it is a cotangent that holds activations, as x − y of a squared error does."""
        return False

    @property
    def mean_square(self) -> float:
        """E x² over all entries."""
        return self.table.mean_square


@final
class Leaf(Field):
    """A tensor made by nothing that is tracked: a parameter, an input, a constant.

    Args:
        table: Its table; None to measure it on the entries when asked for.
        values: Its entries, if they are known.
        orthogonal: Whether it is a multiple of a random (semi-)orthogonal matrix.
        cotangent: As in :class:`Field`.
        known: Whether it is the same for all draws of the weights; by default, if its entries are known.
    """

    def __init__(
        self,
        table: Table | None,
        values: torch.Tensor | None = None,
        *,
        orthogonal: bool = False,
        cotangent: bool = False,
        known: bool | None = None,
    ) -> None:
        assert table is not None or values is not None
        super().__init__(table.shape if values is None else values.shape, cotangent=cotangent)  # type: ignore[union-attr]
        self._table = table
        self.values = values
        self.orthogonal = orthogonal
        self.known = values is not None if known is None else known
        self._bit = next(_sources)

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        if self._table is not None:
            return self._table
        assert self.values is not None
        return measured(self.values)

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        mean = self.table.mean
        fixed = mean is not None and mean.size == 1 and (self.table.second == mean.item() ** 2).all()
        return 0 if fixed else 1 << self._bit


@final
class Made(Field):
    """The output of an op that maps tables to a table.

    Args:
        parts: What it was made from.
        rule: From the tables of the parts to that of the output; must be
            linear in each of them, for it serves pairs of tensors too.
        key: Names the op with all its options: fields with equal keys were made alike.
        added: What its own table has beyond that.
    """

    def __init__(
        self,
        shape: Sequence[int],
        parts: Sequence[Field],
        rule: Callable[..., Table],
        key: Hashable,
        added: Callable[[Made], Table | None] | None = None,
    ) -> None:
        super().__init__(shape, cotangent=any(part.cotangent for part in parts))
        self.parts = tuple(parts)
        self.rule = rule
        self.key = key
        self.added = added

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        numbers, scale = reuse.numbers(self.parts)
        name = None if numbers is None else (self.key, self.shape, numbers)
        table = reuse.table_of(name, scale, lambda: self.rule(*(part.table for part in self.parts)))
        more = None if self.added is None else self.added(self)
        if more is None:
            return table
        dims, (table, more) = align([table, more], self.shape)
        return Table(dims, table.second + more.second, table.mean)

    @cached_property
    def mixed(self) -> bool:
        """Whether it is a cotangent that holds activations."""
        return self.cotangent and any(part.mixed for part in self.parts)

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        if len(self.parts) > 1:
            for part in self.parts:
                weight = rearranged_leaf(part)
                if weight is not None and weight.table.centred:
                    return weight.tags  # what holds the same weight holds it as a weight too
        return product_tags([(part, part.table.centred) for part in self.parts])


@final
class Sum(Field):
    """a·x + b·y. Random tensors that are added covary as :func:`cross` says."""

    def __init__(self, shape: Sequence[int], terms: Sequence[tuple[float, Field]]) -> None:
        super().__init__(shape, cotangent=any(field.cotangent for _, field in terms))
        self.terms = tuple(terms)

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        scale = reuse.up_to_scale(self.terms[0][1].table)[1] if self.cotangent else 1.0
        pairs = [cross(x, y) for (_, x), (_, y) in itertools.combinations(self.terms, 2)]
        tables = [field.table for _, field in self.terms]
        name_of = reuse.as_it_is if scale == 1.0 else lambda table: reuse.number(table, scale)
        numbers = [None if t is None else name_of(t) for t in (*tables, *pairs)]
        known = all(n is not None or t is None for n, t in zip(numbers, (*tables, *pairs), strict=True))
        name = (self.shape, *(factor for factor, _ in self.terms), *numbers) if known else None
        return reuse.table_of(name, scale, lambda: self._added(pairs))

    def _added(self, pairs: Sequence[Table | None]) -> Table:
        """The table, given those of all pairs of terms."""
        tables = [field.table.scaled(factor) for factor, field in self.terms]
        dims, tables = align(tables, self.shape)
        second = np.sum([t.second for t in tables], 0)
        each = itertools.combinations(enumerate(factor for factor, _ in self.terms), 2)
        for ((i, f), (j, g)), pair in zip(each, pairs, strict=True):
            if pair is None:
                mixed = independent_pair(tables[i], tables[j])
            else:
                aligned_dims, (mixed,) = align([pair.scaled(1.0)], self.shape)
                if aligned_dims != dims:
                    _, (mixed, _) = align([pair, tables[i]], self.shape)
                mixed = Table(dims, mixed.second * f * g, None)
            second = second + mixed.second + mixed.swapped().second
        mean = np.sum([t.means for t in tables], 0)
        return Table(dims, second, mean).limited()

    @cached_property
    def mixed(self) -> bool:
        """Whether it is a cotangent that holds activations."""
        return self.cotangent and any(
            field.mixed or (not field.cotangent and bool(field.tags)) for _, field in self.terms
        )

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return _union([field for _, field in self.terms])


def rearranged_leaf(x: Field) -> Leaf | None:
    """The leaf of the forward pass that a field shows in another order, if it does."""
    while isinstance(x, Made) and len(x.parts) == 1:
        x = x.parts[0]
    return x if isinstance(x, Leaf) and not x.cotangent else None


def product_tags(factors: Sequence[tuple[Field, bool]]) -> int:
    """Tags of a product, given its factors and whether each has mean zero.

    It covaries only with what each of its zero-mean factors covaries with, so one of these decides.
    """
    centred = [field for field, has_mean_zero in factors if has_mean_zero]
    centred = [field for field in centred if field.cotangent] or centred
    if centred:
        return min((field.tags for field in centred), key=int.bit_count)
    return _union([field for field, _ in factors])


def _union(fields: Sequence[Field]) -> int:
    tags = 0
    for field in fields:
        tags |= field.tags
    return tags


_known: dict[tuple[int, int], tuple[Field, Field, Table | None]] = {}
_PRODUCT, _TRANSPOSE = ("contract", "ik,kj->ij"), ("permute", (1, 0))


def cross(x: Field, y: Field) -> Table | None:
    """E x_i y_j; None where x and y are independent, so that it is the product of their means."""
    if x is y:
        return x.table
    if _independent(x, y):
        return None
    if (found := _known.get((id(x), id(y)))) is not None:
        return found[2]
    if (found := _known.get((id(y), id(x)))) is not None:
        return None if found[2] is None else found[2].swapped()
    table = _cross(x, y)
    if table is not None and _uncorrelated(table, x.table, y.table):
        table = None
    _known[id(x), id(y)] = (x, y, table)
    return table


def _uncorrelated(pair: Table, first: Table, second: Table) -> bool:
    """Whether E x_i y_j is nothing, and E x_i or E y_j too."""
    if not (first.centred or second.centred):
        return False
    size = math.sqrt(max(first.mean_square * second.mean_square, 0.0))
    return bool((np.abs(pair.second) <= NEGLIGIBLE * size).all())


def _independent(x: Field, y: Field) -> bool:
    """Whether two different fields share no source."""
    if x is y:
        return False
    return not x.tags & y.tags or (x.cotangent != y.cotangent and not (x.mixed or y.mixed))


def forget() -> None:
    """Drop all pairs found so far, which keep their fields alive, and what repeated layers share."""
    _known.clear()
    reuse.forget()


def _cross(x: Field, y: Field) -> Table | None:
    from evenflow.predict.expressions import Expression, cross_expressions, cross_with_atom, made_of

    for first, second in ((x, y), (y, x)):
        spread = _spread_sum(second)
        if spread is not None and spread[0].shape == first.shape:
            pair = cross(first, spread[0])
            pair = None if pair is None else pair.summed_second(spread[1])
            return pair if pair is None or second is y else pair.swapped()
    for first, second in ((x, y), (y, x)):  # a function of the very sum knows it as a whole
        if isinstance(first, Sum) and not (isinstance(second, Expression) and first in second.atoms):
            pair = _cross_sum(first, second)
            return pair if pair is None or second is y else pair.swapped()
    if isinstance(x, Expression) and isinstance(y, Expression) and x.cotangent:
        from evenflow.predict.rules.euler import across_norm

        pair = across_norm(x, y)
        if pair is not None:
            return pair
    if isinstance(x, Expression) or isinstance(y, Expression):
        return cross_expressions(x, y)
    if y in made_of(x):
        return cross_with_atom(x, y)
    if x in made_of(y):
        pair = cross_with_atom(y, x)
        return None if pair is None else pair.swapped()
    found: Table | None
    alike = getattr(x, "cross", None)
    if alike is not None and type(x) is type(y):
        found = alike(y)
        return found
    for one, other in ((x, y), (y, x)):
        through = getattr(one, "cross_through", None)
        if through is not None and one.shape == other.shape:
            found = through(other)
            return found if one is x or found is None else found.swapped()
    if isinstance(x, Made) and isinstance(y, Made):
        x, y = _as_product(x, y), _as_product(y, x)
        if x.key == y.key:
            return _cross_made(x, y)
        if x.key[0] == y.key[0] == "slice" and x.key[1] == y.key[1] and x.shape == y.shape:  # type: ignore[index]
            pair = cross(x.parts[0], y.parts[0])
            return None if pair is None else pair.apart(x.key[1], x.key[2], y.key[2], x.shape[x.key[1]])  # type: ignore[index]
    return None


def _spread_sum(x: Field) -> tuple[Field, tuple[int, ...]] | None:
    """What x is a sum of, spread over the summed dimensions again, and these dimensions."""
    if not isinstance(x, Made) or x.key[0] != "expand":  # type: ignore[index]
        return None
    inner = getattr(x.parts[0], "direct", x.parts[0])  # of an inner product
    if not isinstance(inner, Made) or inner.key[0] != "sum" or inner.parts[0].shape != x.shape:  # type: ignore[index]
        return None
    over: tuple[int, ...] = inner.key[1]  # type: ignore[index]
    return inner.parts[0], over


def _cross_sum(x: Sum, y: Field) -> Table | None:
    pairs = [(factor, part, cross(part, y)) for factor, part in x.terms]
    if all(pair is None for _, _, pair in pairs):
        return None
    tables = []
    for factor, part, pair in pairs:
        if pair is None:
            _, (a, b) = align([part.table, y.table], np.broadcast_shapes(part.shape, y.shape))
            tables.append((factor, independent_pair(a, b)))
        else:
            tables.append((factor, pair))
    dims, aligned = align([t for _, t in tables], np.broadcast_shapes(*(t.shape for _, t in tables)))
    return Table(dims, np.sum([f * t.second for (f, _), t in zip(tables, aligned, strict=True)], 0), None)


def _as_product(x: Made, like: Made) -> Made:
    """(a b)ᵀ as the product bᵀaᵀ, to be compared with another product."""
    if x.key != _TRANSPOSE or like.key != _PRODUCT or not isinstance(x.parts[0], Made):
        return x
    product = x.parts[0]
    if product.key != _PRODUCT:
        return x
    a, b = (_transposed(part) for part in product.parts)
    return Made(x.shape, (b, a), product.rule, _PRODUCT)


def _transposed(x: Field) -> Field:
    if isinstance(x, Made) and x.key == _TRANSPOSE:
        return x.parts[0]
    return Made(x.shape[::-1], (x,), lambda table: table.permuted((1, 0)), _TRANSPOSE)


def _cross_made(x: Made, y: Made) -> Table | None:
    tables, related = [], False
    if any(
        _independent(a, b) and (a.table.centred or b.table.centred)
        for a, b in zip(x.parts, y.parts, strict=True)
    ):
        return None
    for a, b in zip(x.parts, y.parts, strict=True):
        if a.shape != b.shape:
            return None
        pair = cross(a, b)
        if pair is None:
            if a.table.centred or b.table.centred:
                return None
            _, (mine, other) = align([a.table, b.table], a.shape)
            pair = independent_pair(mine, other)
        else:
            related = True
        tables.append(pair if pair.mean is None else Table(pair.dims, pair.second, None))
    return x.rule(*tables) if related else None
