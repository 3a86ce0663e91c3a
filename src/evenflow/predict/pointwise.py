"""Pointwise ops: what they make of fields and numbers.

Sums of fields are linear and exact, products stay unevaluated, and a nonlinear
function is applied to one field (:mod:`evenflow.predict.expressions`). A backward op
is linear in the cotangent, its first argument: it is the product with the derivative,
which the op itself gives at cotangent 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from evenflow.predict.expressions import Expression, Routed, Term, as_field, as_terms, made_of, one_function
from evenflow.predict.fields import Field, Leaf, Sum, cross
from evenflow.predict.scalar import VARIABLE, Scalar, times


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


def product(shape: Sequence[int], x: Any, y: Any) -> Field:
    """X · y."""
    if not isinstance(x, Field):
        x, y = y, x
    if not isinstance(y, Field):
        return _linear(shape, [(float(y), x)])
    for routed, other in ((x, y), (y, x)):
        if _routed_by(routed, other):
            found = one_function(other)
            assert isinstance(routed, Routed)
            assert found is not None
            return routed.weighted(found[1])
        if isinstance(routed, Sum) and any(_routed_by(part, other) for _, part in routed.terms):
            return Sum(shape, [(factor, product(shape, part, other)) for factor, part in routed.terms])
    terms = [a.times(b) for a in _terms(x, y) for b in _terms(y, x)]
    result = Expression(shape, [part for term in terms for part in _conditioned(term)])
    if not result.unwieldy:
        return result
    x, y = sorted((x, y), key=lambda field: isinstance(field, Expression) and len(field.terms))
    return Expression(shape, [a.times(b) for a in as_terms(_tame(x)) for b in as_terms(as_field(y))])


def _terms(x: Field, other: Field) -> list[Term]:
    """As :func:`as_terms`; what a mixed cotangent holds of the other's activations stands apart."""
    if not isinstance(x, Sum) or not x.mixed:
        return list(as_terms(x))
    met = set(other.atoms) if isinstance(other, Expression) else {other}
    apart, rest = [], []
    for factor, part in x.terms:
        found = as_terms(part)
        same = not part.cotangent and {field for term in found for field, _ in term.functions} <= met
        if same:
            apart += [Term(factor * term.factor, term.functions) for term in found]
        else:
            rest.append((factor, part))
    if not apart:
        return list(as_terms(x))
    return [*apart, *(as_terms(Sum(x.shape, rest)) if rest else ())]


def _routed_by(routed: Field, other: Field) -> bool:
    """Whether a field was sent to entries chosen by what the other is a function of."""
    return (
        isinstance(routed, Routed)
        and (found := one_function(other)) is not None
        and found[0] is routed.source
    )


def _conditioned(term: Term) -> list[Term]:
    """A product f(u)·x in which x is part of u = x + y or γ x + y, with x = β u + r and r independent of u.

    β = cov(x, u)/var(u), so that r and u, jointly Gaussian if γ varies little, have covariance zero.
    """
    for u, f in term.functions:
        if f.linear:
            continue
        for x, g in term.functions:
            if g.linear and x.shape == u.shape and (_is_part(x, u) or x.mixed):
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
    single = [one_function(field) for field in fields]
    atoms = {found[0] for found in single if found is not None}
    if None in single or len(atoms) > 1:
        if len({id(field) for field in fields}) > 1:
            return _joint(op, args, options, shape)
        single = [(as_field(field), VARIABLE) for field in fields]
    found = [each for each in single if each is not None]
    atom, functions = found[0][0], iter(function for _, function in found)
    inner = tuple(next(functions) if isinstance(arg, Field) else arg for arg in args)
    return Expression(shape, [Term(1.0, ((atom, Scalar(op, inner, options)),))])


def _joint(
    op: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], shape: Sequence[int]
) -> Field:
    raise NotImplementedError("a nonlinear function of several random tensors")
