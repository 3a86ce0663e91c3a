"""Expressions: sums of products of functions of single fields, kept unevaluated.

    e = Σ_t c_t Π_a f_ta(x_a),      x_a Gaussian fields, f_ta scalar functions.

The activations, gates and their backward ops of real networks all have this
form: SwiGLU is silu(x)·y, the cotangent of a GELU is g·gelu'(x). Since products
stay unevaluated, the cotangent of a gate remembers the gate. Expectations
factor over independent fields,

    E e_i e_j = Σ_tt' c_t c_t' Π_a E f_ta(x_ai) f_t'a(x_aj),

each factor being a two-dimensional Gaussian integral at most
(:mod:`evenflow.predict.scalar`). Where a function is applied to several fields at
once (``gelu(x + y)``), the inner expression becomes a field of its own, taken
as Gaussian: exact for sums of Gaussian fields, the central-limit approximation
elsewhere.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch

from evenflow.predict import reuse
from evenflow.predict.combine import align
from evenflow.predict.fields import Field, Leaf, Made, cross, product_tags
from evenflow.predict.known import refined
from evenflow.predict.lazy import cached_property
from evenflow.predict.scalar import VARIABLE, Scalar, expect, expect_pair, times
from evenflow.predict.table import Table, constant

MAX_TERMS = 6
MAX_FACTORS = 6
MAX_SIZE = 60
"""Limits beyond which an expression is evaluated and counts as one Gaussian field."""


@dataclass(frozen=True)
class Term:
    """One product.

    Attributes:
        factor: Its constant c.
        functions: Field → function of it.
    """

    factor: float
    functions: tuple[tuple[Field, Scalar], ...]

    def times(self, other: Term) -> Term:
        """The product of two terms."""
        functions = dict(self.functions)
        for field, function in other.functions:
            functions[field] = times(functions[field], function) if field in functions else function
        return Term(self.factor * other.factor, tuple(functions.items()))


@final
class Expression(Field):
    """A sum of terms.

    Attributes:
        alike: Whether all its rows are those of one token.
        permuted: The expression whose entries it shows with dimensions in another order, if it does.
    """

    def __init__(self, shape: Sequence[int], terms: Sequence[Term]) -> None:
        super().__init__(
            shape, cotangent=any(field.cotangent for term in terms for field, _ in term.functions)
        )
        self.terms = tuple(terms)
        self.as_one: Field | None = None
        self.alike = False
        self.permuted: Expression | None = None

    @cached_property
    def atoms(self) -> tuple[Field, ...]:
        """The fields that it is a function of."""
        return tuple(dict.fromkeys(field for term in self.terms for field, _ in term.functions))

    @cached_property
    def mixed(self) -> bool:
        """Whether it is a cotangent that holds activations: its own cotangents are mixed, or known."""
        if not self.cotangent:
            return False
        return any(
            all(atom.mixed or not atom.tags for atom, _ in term.functions if atom.cotangent)
            and any(atom.tags for atom, _ in term.functions)
            for term in self.terms
        )

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        tags = 0
        for term in self.terms:
            tags |= product_tags([(atom, f.linear and atom.table.centred) for atom, f in term.functions])
        return tags

    @property
    def unwieldy(self) -> bool:
        """Whether it has outgrown what is worth keeping unevaluated."""
        return (
            len(self.terms) > MAX_TERMS
            or any(len(term.functions) > MAX_FACTORS for term in self.terms)
            or any(function.size > MAX_SIZE for term in self.terms for _, function in term.functions)
        )

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        if not self.atoms:
            return constant(self.shape, sum(term.factor for term in self.terms))
        return reuse.table_of(*self.name, self._evaluated)

    @cached_property
    def name(self) -> tuple[Hashable, float]:
        """All that its table depends on, None if that is hard to say, and the scale of its cotangent."""
        linear = sum(atom.cotangent for atom in self.atoms) == self.cotangent and all(
            sum(atom.cotangent and f.linear for atom, f in term.functions) == self.cotangent
            for term in self.terms
        )
        entries = any(isinstance(atom, Leaf) and atom.values is not None for atom in self.atoms)
        if not linear or entries:  # known entries are more than a table
            return None, 1.0
        numbers, scale = reuse.numbers(self.atoms)
        shared = [((i, j), reuse.number(t)) for i, j, t in self._shared]
        if numbers is None or any(n is None for _, n in shared):
            return None, 1.0
        at = {atom: i for i, atom in enumerate(self.atoms)}
        terms = tuple((t.factor, tuple((at[atom], f.key) for atom, f in t.functions)) for t in self.terms)
        return (self.shape, terms, numbers, tuple(shared)), scale

    @cached_property
    def _shared(self) -> list[tuple[int, int, Table]]:
        """E x_i y_j of the atoms that covary, with their positions."""
        return [
            (i, j, pair)
            for (i, a), (j, b) in itertools.permutations(enumerate(self.atoms), 2)
            if a.shape == b.shape and (pair := cross(a, b)) is not None
        ]

    def _evaluated(self) -> Table:
        pairs: _Pairs = {atom: {atom: atom.table} for atom in self.atoms}
        for i, j, pair in self._shared:
            pairs[self.atoms[i]][self.atoms[j]] = pair
        found = _moments(self, self, pairs)
        mean = _means(self)
        return Table(found.dims, found.second, mean).limited()


class Routed(Field):
    """A cotangent that remembers to which entries of a field it was sent.

    Attributes:
        source: That field.
    """

    source: Field

    @abstractmethod
    def weighted(self, weight: Scalar) -> Field:
        """Multiplied by a function of the source."""


def as_terms(field: Field) -> tuple[Term, ...]:
    """Any field as a sum of products; an expression that became a field stays one."""
    if isinstance(field, Expression):
        return field.terms if field.as_one is None else (Term(1.0, ((field.as_one, VARIABLE),)),)
    return (Term(1.0, ((field, VARIABLE),)),)


_Pairs: TypeAlias = dict[Field, dict[Field, Table]]


def cross_expressions(x: Field, y: Field) -> Table | None:
    """E x_i y_j of two fields of which at least one is an expression."""
    pairs: _Pairs = {}
    for left in as_terms(x):
        for right in as_terms(y):
            _match(left, right, pairs)
    if not pairs:
        return None
    found = _moments(x, y, pairs)
    return Table(found.dims, found.second, None)


def _match(left: Term, right: Term, pairs: _Pairs) -> None:
    """Find which factors of two terms covary, and give up on the first zero-mean one that has no partner."""
    found: _Pairs = {}
    partners: set[Field] = set()
    # What stands on both sides goes with itself; then cotangents, the likeliest to have no partner.
    both = {a for a, _ in left.functions} & {b for b, _ in right.functions}
    factors, others = (
        sorted(term.functions, key=lambda pair: (pair[0] not in both, not pair[0].cotangent))
        for term in (left, right)
    )
    for a, f in factors:
        for b, _ in others:
            if b in partners or a.shape != b.shape or (a in both and a is not b):
                continue
            table = cross(a, b)
            if table is not None:
                found[a] = {b: table}
                partners.add(b)
                break
        else:
            if f.linear and a.table.centred:
                return
    if any(f.linear and b not in partners and b.table.centred for b, f in right.functions):
        return
    for a, row in found.items():
        pairs.setdefault(a, {}).update(row)


def _moments(x: Field, y: Field, pairs: _Pairs) -> Table:
    """Σ_tt' c_t c_t' Π E f f', with fields matched by ``pairs`` and the rest independent."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    left_terms, right_terms = (
        e.terms if x is y and isinstance(e, Expression) else as_terms(e) for e in (x, y)
    )
    atoms = tuple(dict.fromkeys(a for term in (*left_terms, *right_terms) for a, _ in term.functions))
    linked = [(a, b) for a, row in pairs.items() for b in row]
    dims, aligned = align([*(a.table for a in atoms), *(pairs[a][b] for a, b in linked)], shape)
    if x.cotangent:
        both = [*((a, a) for a in atoms), *linked]
        aligned = [refined(a, dims, t) if a is b else t for (a, b), t in zip(both, aligned, strict=True)]
    table = dict(zip(atoms, aligned, strict=False))
    joint = dict(zip(linked, aligned[len(atoms) :], strict=True))
    frame = aligned[0]

    @_once
    def side(atom: Field, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance at the first or second entry of each pair."""
        mean = table[atom].means
        variance = np.maximum(table[atom].diagonal - mean**2, 0.0)
        return frame.sides(mean)[which], frame.sides(variance)[which]

    total = np.zeros(frame.second.shape)
    for left in left_terms:
        for right in right_terms:
            value = np.full(frame.second.shape, left.factor * right.factor)
            free = dict(sorted(right.functions, key=lambda pair: not pair[0].cotangent))
            # What stands on both sides goes with itself, and is no partner for the rest;
            # then cotangents, of either side: they have mean zero.
            for a, f in sorted(left.functions, key=lambda pair: (pair[0] not in free, not pair[0].cotangent)):
                b = a if a in free and (a, a) in joint else next((b for b in free if (a, b) in joint), None)
                mean_a, var_a = side(a, 0)
                if b is None:
                    value = value * expect(f, mean_a, var_a)
                    continue
                mean_b, var_b = side(b, 1)
                covariance = joint[a, b].second - mean_a * mean_b
                value = value * expect_pair(f, free.pop(b), (mean_a, mean_b), (var_a, var_b), covariance)
            for b, g in free.items():
                value = value * expect(g, *side(b, 1))
            total = total + value
    return Table(dims, total, None)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    memory: dict[Any, Any] = {}

    def remembered(*args: Any) -> Any:
        if args not in memory:
            memory[args] = function(*args)
        return memory[args]

    return remembered


def _means(x: Expression) -> np.ndarray:
    """E e by segments."""
    _, tables = align([atom.table for atom in x.atoms], x.shape)
    table = dict(zip(x.atoms, tables, strict=True))
    total: Any = 0.0
    for term in x.terms:
        value: Any = term.factor
        for atom, f in term.functions:
            mean = table[atom].means
            value = value * expect(f, mean, np.maximum(table[atom].diagonal - mean**2, 0.0))
        total = total + value
    return np.broadcast_to(total, tables[0].means.shape)


def as_field(x: Field) -> Field:
    """An expression as one field, taken as Gaussian where functions are applied to it."""
    if not isinstance(x, Expression):
        return x
    if x.as_one is None:
        x.as_one = Made(x.shape, (x,), _same, "same")
    return x.as_one


def made_of(x: Field) -> tuple[Field, ...]:
    """What the expression behind a field is a function of."""
    source = x.parts[0] if isinstance(x, Made) and x.key == "same" else None
    return source.atoms if isinstance(source, Expression) else ()


def cross_with_atom(x: Field, atom: Field) -> Table | None:
    """E x_i y_j of a field that was an expression with what that is a function of."""
    source = x.parts[0]  # type: ignore[attr-defined]
    return cross_expressions(Expression(source.shape, source.terms), atom)


def _same(table: Table) -> Table:
    return table


def one_function(field: Field) -> tuple[Field, Scalar] | None:
    """The field as a function of one other, if it is that."""
    if not isinstance(field, Expression):
        return field, VARIABLE
    if len(field.atoms) != 1 or field.unwieldy or field.atoms[0].shape != field.shape:
        return None
    total: Scalar | None = None
    for term in field.terms:
        function = term.functions[0][1] if term.functions else None
        value = (
            Scalar(torch.mul, (function, term.factor))
            if function is not None and term.factor != 1
            else function
        )
        if value is None:
            value = Scalar(torch.full_like, (VARIABLE, term.factor))
        total = value if total is None else Scalar(torch.add, (total, value))
    assert total is not None
    return field.atoms[0], total


def as_scalar(field: Field) -> tuple[Field, Scalar]:
    """The field as a function of one other, itself if nothing better is known."""
    found = one_function(field)
    return (as_field(field), VARIABLE) if found is None else found
