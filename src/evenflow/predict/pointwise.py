"""Pointwise ops: sums of products of functions of single fields, kept unevaluated.

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
from functools import cached_property
from typing import Any, TypeAlias, final

import numpy as np
import torch

from evenflow.predict import reuse
from evenflow.predict.fields import Field, Leaf, Made, Sum, cross, product_tags
from evenflow.predict.known import refined
from evenflow.predict.scalar import VARIABLE, Scalar, expect, expect_pair, times
from evenflow.predict.table import Table, align, constant

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
    """A sum of terms."""

    def __init__(self, shape: Sequence[int], terms: Sequence[Term]) -> None:
        super().__init__(
            shape, cotangent=any(field.cotangent for term in terms for field, _ in term.functions)
        )
        self.terms = tuple(terms)
        self.as_one: Field | None = None

    @cached_property
    def atoms(self) -> tuple[Field, ...]:
        """The fields that it is a function of."""
        return tuple(dict.fromkeys(field for term in self.terms for field, _ in term.functions))

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
    # Cotangents first: they are the likeliest to have no partner.
    factors = sorted(left.functions, key=lambda pair: not pair[0].cotangent)
    for a, f in factors:
        for b, _ in right.functions:
            if b in partners or a.shape != b.shape:
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
            free = dict(right.functions)
            # What stands on both sides goes with itself, and is no partner for the rest.
            for a, f in sorted(left.functions, key=lambda pair: pair[0] not in free):
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


# Building


def apply(
    op: Callable[..., Any], name: str, args: Sequence[Any], options: dict[str, Any], shape: Sequence[int]
) -> Field:
    """The output of a pointwise op.

    Args:
        op: The op, callable on real tensors.
        name: Its name without overload.
        args: Fields and constants.
        options: Keyword arguments.
        shape: Shape of the output.

    Raises:
        NotImplementedError: It mixes several fields in a way that has no rule.
    """
    if name in ("add", "sub") and (scores := _added_mask(args, shape)) is not None:
        return scores
    args = [_number(arg) for arg in args]
    masked = next((arg for arg in args if isinstance(arg, Field) and arg.keep is not None), None)
    result = _apply(op, name, args, options, shape)
    if masked is not None:
        result.keep, result.hidden = masked.keep, masked.hidden
    return result


MASKED = -50.0
"""An additive mask holds 0 and numbers below this: e^−50 is no share of attention.

Models use −100 … −3e38.
"""


def _added_mask(args: Sequence[Any], shape: Sequence[int]) -> Field | None:
    """Scores plus a mask of zeros and −∞: the scores, of which only some count."""
    for x, mask in (args, args[::-1]):
        if (
            isinstance(mask, Leaf)
            and mask.values is not None
            and mask.values.is_floating_point()
            and mask.values.numel() > 1
        ):
            low = mask.values < MASKED
            if (
                bool(low.any())
                and isinstance(x, Field)
                and x is not mask
                and not bool(mask.values[~low].any())
            ):
                from evenflow.predict.rules.indexing import with_mask

                return with_mask(x, ~low, shape, float(mask.values[low].mean()))
    return None


def _number(arg: Any) -> Any:
    """A tensor filled with one number as that number."""
    if (
        isinstance(arg, Leaf)
        and not arg.cotangent
        and not arg.tags
        and not (arg.values is not None and arg.values.is_complex())
    ):
        return arg.table.average
    return arg


def _apply(
    op: Callable[..., Any], name: str, args: list[Any], options: dict[str, Any], shape: Sequence[int]
) -> Field:
    match name, args:
        case (("add" | "sub" | "rsub"), [x, y]):
            alpha = options.get("alpha", 1)
            signs = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[name]
            return _linear(shape, [(signs[0], x), (signs[1], y)])
        case "mul", [x, y]:
            return product(shape, x, y)
        case (("maximum" | "minimum"), [x, y]) if not (isinstance(x, Field) and isinstance(y, Field)):
            x, y = (x, y) if isinstance(x, Field) else (y, x)
            return _unary(torch.clamp_min if name == "maximum" else torch.clamp_max, [x, y], {}, shape)
        case "neg", [x]:
            return _linear(shape, [(-1.0, x)])
        case "div", [x, y] if not options:
            if not isinstance(y, Field):
                return _linear(shape, [(1.0 / y, x)])
            return product(shape, x, _unary(torch.reciprocal, [y], {}, y.shape))
        case _, [x, *rest] if name.endswith("_backward") and isinstance(x, Field):
            # Backward ops are linear in the cotangent, their first argument.
            if any(isinstance(arg, Field) for arg in rest):
                slope_shape = np.broadcast_shapes(*(arg.shape for arg in rest if isinstance(arg, Field)))
                slope = _unary(_with_unit_cotangent(op), rest, options, slope_shape)
                return product(shape, x, slope)
        case "addcmul", [x, y, z]:
            return _linear(shape, [(1.0, x), (float(options.get("value", 1)), product(shape, y, z))])
        case "lerp", [x, y, w]:
            difference = _linear(shape, [(1.0, y), (-1.0, x)])
            return _linear(shape, [(1.0, x), (1.0, product(shape, difference, w))])
    return _unary(op, args, options, shape)


class _WithUnitCotangent:
    """A backward op with cotangent 1: the derivative."""

    def __init__(self, op: Callable[..., Any]) -> None:
        self.op = op

    def __repr__(self) -> str:
        return f"derivative:{self.op}"

    def __call__(self, *args: Any, **options: Any) -> Any:
        saved = next(arg for arg in args if isinstance(arg, torch.Tensor))
        return self.op(torch.ones_like(saved), *args, **options)


def _with_unit_cotangent(op: Callable[..., Any]) -> Callable[..., Any]:
    return _WithUnitCotangent(op)


def _linear(shape: Sequence[int], parts: Sequence[tuple[float, Any]]) -> Field:
    """A linear combination of fields and numbers."""
    fields = [(float(factor), part) for factor, part in parts if isinstance(part, Field)]
    offset = sum(float(factor) * float(part) for factor, part in parts if not isinstance(part, Field))
    fields = [(f, x) for f, x in fields if not _is_zero(x)] or fields[:1]
    if len(fields) == 1 and offset == 0 and fields[0][0] == 1 and fields[0][1].shape == tuple(shape):
        return fields[0][1]
    nonlinear = offset != 0 or len(fields) == 1 or _share_atoms([x for _, x in fields])
    if nonlinear:
        terms = [Term(f * term.factor, term.functions) for f, x in fields for term in as_terms(x)]
        if offset:
            terms.append(Term(offset, ()))
        return _made(shape, _collected(terms))
    return Sum(shape, fields)


def _is_zero(x: Field) -> bool:
    return isinstance(x, Leaf) and not x.table.second.any()


def _share_atoms(fields: Sequence[Field]) -> bool:
    """Whether two of the fields are functions of one and the same: they must be added entry by entry."""
    seen: set[Field] = set()
    for field in fields:
        atoms = set(field.atoms) if isinstance(field, Expression) else {field}
        if seen & atoms:
            return True
        seen |= atoms
    return False


def _collected(terms: Sequence[Term]) -> list[Term]:
    """Equal products joined."""
    found: dict[Any, Term] = {}
    for term in terms:
        key = tuple(sorted((id(field), function.key) for field, function in term.functions))
        old = found.get(key)
        found[key] = term if old is None else Term(old.factor + term.factor, term.functions)
    return list(found.values())


def _made(shape: Sequence[int], terms: Sequence[Term]) -> Field:
    return Expression(shape, terms)


def _tame(x: Any) -> Any:
    """An expression that has outgrown its limits becomes a field of its own."""
    return as_field(x) if isinstance(x, Expression) and x.unwieldy else x


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


def product(shape: Sequence[int], x: Any, y: Any) -> Field:
    """X · y."""
    if not isinstance(x, Field):
        x, y = y, x
    if not isinstance(y, Field):
        return _linear(shape, [(float(y), x)])
    for routed, other in ((x, y), (y, x)):
        if _routed_by(routed, other):
            found = _as_scalar(other)
            assert isinstance(routed, Routed)
            assert found is not None
            return routed.weighted(found[1])
        if isinstance(routed, Sum) and any(_routed_by(part, other) for _, part in routed.terms):
            return Sum(shape, [(factor, product(shape, part, other)) for factor, part in routed.terms])
    terms = [a.times(b) for a in as_terms(x) for b in as_terms(y)]
    result = Expression(shape, [part for term in terms for part in _conditioned(term)])
    if not result.unwieldy:
        return result
    x, y = sorted((x, y), key=lambda field: isinstance(field, Expression) and len(field.terms))
    return Expression(shape, [a.times(b) for a in as_terms(_tame(x)) for b in as_terms(as_field(y))])


def _routed_by(routed: Field, other: Field) -> bool:
    """Whether a field was sent to entries chosen by what the other is a function of."""
    return (
        isinstance(routed, Routed) and (found := _as_scalar(other)) is not None and found[0] is routed.source
    )


def _conditioned(term: Term) -> list[Term]:
    """A product f(u)·x in which x is part of u = x + y or γ x + y, with x = β u + r and r independent of u.

    β = cov(x, u)/var(u), so that r and u, jointly Gaussian if γ varies little, have covariance zero.
    """
    for u, f in term.functions:
        if f.linear:
            continue
        for x, g in term.functions:
            if g.linear and x.shape == u.shape and _is_part(x, u):
                pair = cross(u, x)
                variance = u.table.mean_square - u.table.average**2
                if pair is None or variance <= 0:
                    continue
                slope = (pair.mean_square - u.table.average * x.table.average) / variance
                rest = Sum(x.shape, [(1.0, x), (-slope, u)])
                others = dict(term.functions)
                del others[x]
                along = dict(others)
                along[u] = times(f, VARIABLE)
                return [
                    Term(term.factor * slope, tuple(along.items())),
                    Term(term.factor, (*others.items(), (rest, VARIABLE))),
                ]
    return [term]


def _is_part(x: Field, u: Field) -> bool:
    """Whether a field is one of the terms of another, or a factor of one."""
    if isinstance(u, Sum):
        return any(part is x for _, part in u.terms)
    return x in made_of(u)


def _unary(
    op: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], shape: Sequence[int]
) -> Field:
    """A function of one field, whatever the number of arguments."""
    fields = [arg for arg in args if isinstance(arg, Field)]
    single = [_as_scalar(field) for field in fields]
    atoms = {found[0] for found in single if found is not None}
    if None in single or len(atoms) > 1:
        if len({id(field) for field in fields}) > 1:
            return _joint(op, args, options, shape)
        single = [(as_field(field), VARIABLE) for field in fields]
    found = [each for each in single if each is not None]
    atom, functions = found[0][0], iter(function for _, function in found)
    inner = tuple(next(functions) if isinstance(arg, Field) else arg for arg in args)
    return Expression(shape, [Term(1.0, ((atom, Scalar(op, inner, options)),))])


def _as_scalar(field: Field) -> tuple[Field, Scalar] | None:
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
    found = _as_scalar(field)
    return (as_field(field), VARIABLE) if found is None else found


def _joint(
    op: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], shape: Sequence[int]
) -> Field:
    raise NotImplementedError("a nonlinear function of several random tensors")
