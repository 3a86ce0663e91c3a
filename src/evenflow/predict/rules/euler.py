"""Sums Σ g·x that follow from how a function scales with its input.

A function φ with φ(cu) = c^k φ(u) for c > 0 hands them on from output to input,

    Σ_i g_i u_i φ'(u_i) = k Σ_i g_i φ(u_i),

and for an RMSNorm x r with r = (mean x² + ε)^(−1/2) written as pow, mean, rsqrt and
mul next to nothing is left of them: with the cotangent g of its output and G = Σ g x,

    h = g r − G r³ x/n,     Σ h x = G r (1 − r² mean x²) = G r³ ε.

So in Linear → RMSNorm → ReLU → Linear → RMSNorm the gradient of the first norm's
size is what the second layer's bias b alone makes, −Σ h b: a scale that the next norm
takes out again has no gradient.

References:
    Euler's theorem on homogeneous functions. Σ h x = 0 at ε = 0 is what Arora et al.,
    "Theoretical Analysis of Auto Rate-Tuning by Batch Normalization", 2019, Lemma 2.4,
    say of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from evenflow.predict.axes import agreeing
from evenflow.predict.expressions import Expression, Term, as_terms, made_of
from evenflow.predict.fields import Field, Leaf, Made, Sum, cross
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.views import view
from evenflow.predict.scalar import VARIABLE, Scalar, expect_pair, times
from evenflow.predict.table import Table

_POINTS = torch.cat([sign * torch.logspace(-2, 1, 41, dtype=torch.float64) for sign in (-1.0, 1.0)])
"""Where functions are compared: both sides of the kink, three decades."""
_ROUNDING = 1e-12
"""Of functions evaluated in float64 by a few ops."""


# Functions


def multiple(f: Scalar, g: Scalar) -> float | None:
    """K with f = k g, if there is one."""
    if f.key == g.key:
        return 1.0
    mine, other = f(_POINTS), g(_POINTS)
    square = float(other @ other)
    if not square > 0:
        return None
    k = float(mine @ other) / square
    return k if bool(((mine - k * other).abs() <= _ROUNDING * mine.abs()).all()) else None


def apart(term: Term) -> tuple[Term, dict[Field, Scalar]]:
    """The factors of a term that are one number along the last dimension, and the others."""
    fixed = tuple((x, f) for x, f in term.functions if not x.shape or x.shape[-1] == 1)
    return Term(term.factor, fixed), {x: f for x, f in term.functions if x.shape and x.shape[-1] > 1}


def over(term: Term, divisor: Term) -> Term:
    """Their ratio."""
    inverse = tuple((x, Scalar(torch.reciprocal, (f,))) for x, f in divisor.functions)
    return term.times(Term(1 / divisor.factor, inverse))


def ratio(term: Term, other: Term) -> Term | None:
    """What times ``other`` gives ``term``, if that is one number along the last dimension."""
    (fixed, varying), (fixed_other, varying_other) = apart(term), apart(other)
    if varying.keys() != varying_other.keys():
        return None
    k = 1.0
    for x, f in varying.items():
        found = multiple(f, varying_other[x])
        if found is None:
            return None
        k *= found
    return over(fixed, fixed_other).times(Term(k, ()))


def projected(term: Term, other: Term) -> tuple[Term, list[Term]] | None:
    """A number s for each row along the last dimension, and ρ = term − s·other, orthogonal to ``other``.

    They are functions f and g of the same fields: s ∝ E f g / E g². None where the fields differ.
    """
    if (exact := ratio(term, other)) is not None:
        return exact, []
    (fixed, varying), (fixed_other, varying_other) = apart(term), apart(other)
    if varying.keys() != varying_other.keys() or not varying:
        return None
    k = math.prod(_share(x, f, varying_other[x]) for x, f in varying.items())
    along = Term(-k * fixed.factor, (*fixed.functions, *varying_other.items()))
    return over(fixed, fixed_other).times(Term(k, ())), [term, along] if k else [term]


def _share(x: Field, f: Scalar, g: Scalar) -> float:
    """E f g / E g² over the entries of a field."""
    mean = np.array([x.table.average])
    variance = np.maximum(x.table.mean_square - mean**2, 0.0)
    both, square = (float(expect_pair(h, g, (mean, mean), (variance, variance), variance)[0]) for h in (f, g))
    return both / square if square > 0 else 0.0


def unfolded(term: Term) -> list[Term]:
    """A term f(u) x with u = x r as f(u) u/r, r being one number along the last dimension.

    Such products may stand there as f(u)·(β u + rest), rest = x − β u: that is undone.
    """
    for u, f in term.functions:
        source: tuple[Term, ...] = u.parts[0].terms if made_of(u) else ()  # type: ignore[attr-defined]
        if len(source) != 1 or f.linear:
            continue
        scale, varying = apart(source[0])
        x = next(iter(varying), u)
        if len(varying) != 1 or not varying[x].linear:
            continue
        for part, g in term.functions:
            shares = dict.fromkeys([x], 1.0) if part is x else _shares(part)
            if not g.linear or part is u or not shares or not shares.keys() <= {x, u}:
                continue
            rest = Term(term.factor, tuple(pair for pair in term.functions if pair[0] is not part))
            along = rest.times(Term(1.0, ((u, VARIABLE),)))
            each = [along.times(Term(share, ())) for y, share in shares.items() if y is u]
            if x in shares:
                each.append(over(along, scale).times(Term(shares[x], ())))
            return each
    return [term]


def _shares(x: Field) -> dict[Field, float]:
    return {part: factor for factor, part in x.terms} if isinstance(x, Sum) else {}


def collected(terms: list[Term]) -> list[Term]:
    """Equal products joined, and those that cancel left out."""
    found: dict[frozenset[tuple[Field, str]], Term] = {}
    for term in terms:
        key = frozenset((x, f.key) for x, f in term.functions)
        old = found.get(key)
        found[key] = term if old is None else Term(old.factor + term.factor, term.functions)
    return [term for term in found.values() if term.factor != 0]


# Norms


@dataclass(frozen=True)
class _Norm:
    """The part of an RMSNorm's cotangent that goes through its root mean square.

    Attributes:
        x: What is normalised.
        pulled: G = Σ g x, whose gradient goes to the root mean square.
        squares: S = Σ x².
        share: Σ of this part times x, over G, as a function of S.
    """

    x: Field
    pulled: Field
    squares: Field
    share: Scalar


def before_norm(context: Context, h: Field, y: Field) -> Field | None:
    """Σ h y over the last dimension, where y + b or each head of it goes into an RMSNorm and nowhere else."""
    parts = list(paths(context, flat(h)))
    if len(parts) != 2:
        return None
    for (factor, direct), (factor_through, through) in (parts, parts[::-1]):
        norm = _through_square(through)
        if norm is None or (others := _rest_of(flat(norm.x), y)) is None:
            continue
        straight = _straight(direct, norm)
        if straight is None:
            continue
        total = _plus(_times(straight, factor), _times(norm.share, factor_through))
        left = Expression(norm.pulled.shape, [Term(1.0, ((norm.pulled, VARIABLE), (norm.squares, total)))])
        rows = y.shape[:-1]
        heads, beyond = divmod(math.prod(left.shape), math.prod(rows))
        if beyond or not heads:
            continue
        found = summed_last(context, view(context, None, left, (*rows, heads)))
        for share, bias in others:
            each = summed_last(context, product(h.shape, h, bias))
            found = apply(None, "sub", [found, each], {"alpha": share}, rows)  # type: ignore[arg-type]
        return found
    return None


def summed_last(context: Context, x: Field) -> Field:
    """Σ x over the last dimension."""
    from evenflow.predict.rules.reductions import summed

    return summed(context, x, [len(x.shape) - 1], x.shape[:-1], keep=False)


def across_norm(x: Expression, y: Expression) -> Table | None:
    """E d_i t_j of both parts of an RMSNorm's cotangent, d = g r and t = −G r³ x/n; None for other fields.

    t takes out of d what it has along x. That is 1/n of it where g is as good as independent
    of x, and most of it where the logits of a tied head stand out. Of two rows neither has more
    along the other's x than along any, unless their x are alike.
    """
    for direct, through in ((x, y), (y, x)):
        norm = _through_square(through)
        straight = None if norm is None else _straight(direct, norm)
        if norm is None or straight is None:
            continue
        along, taken = (
            Expression(x.shape, [Term(1.0, ((norm.pulled, VARIABLE), (norm.squares, f), (norm.x, VARIABLE)))])
            for f in (times(f, Scalar(torch.reciprocal, (VARIABLE,))) for f in (straight, norm.share))
        )
        pair = cross(along, taken)
        if pair is None:
            return None
        if not x.alike:
            rows = range(len(pair.axes) - len(pair.dims[-1]))
            pair = Table(pair.dims, np.where(agreeing(pair.axes, rows), pair.second, 0.0), None)
        return pair if direct is x else pair.swapped()
    return None


def _rest_of(x: Field, y: Field) -> list[tuple[float, Field]] | None:
    """What x has besides y, if that is biases."""
    if x is y:
        return []
    if not isinstance(x, Sum) or (1.0, y) not in x.terms:
        return None
    others = [(factor, part) for factor, part in x.terms if part is not y]
    return others if all(isinstance(part, Leaf) and len(part.shape) == 1 for _, part in others) else None


def _through_square(path: Field) -> _Norm | None:
    """A path c G f(S) x with S = Σ x²."""
    if not isinstance(path, Expression) or len(path.terms) != 1:
        return None
    term = Term(
        path.terms[0].factor,
        tuple((_unspread(field), f) for field, f in path.terms[0].functions),
    )
    fixed, varying = apart(term)
    pulled = [field for field, f in fixed.functions if field.cotangent and f.linear]
    squares = [field for field, _ in fixed.functions if not field.cotangent]
    if len(varying) != 1 or len(pulled) != 1 or len(squares) != 1 or len(fixed.functions) != 2:
        return None
    (x, f), (square,) = next(iter(varying.items())), squares
    inner = _summed(square)
    if inner is None or len(terms := as_terms(inner)) != 1 or [a for a, _ in terms[0].functions] != [x]:
        return None
    k = multiple(times(f, VARIABLE), terms[0].functions[0][1])
    if k is None:
        return None
    slope = times(dict(fixed.functions)[square], VARIABLE)
    return _Norm(x, pulled[0], square, _times(slope, fixed.factor * k / terms[0].factor))


def _straight(path: Field, norm: _Norm) -> Scalar | None:
    """The function F of S with Σ path·x = G F(S), if there is one."""
    source = _summed(getattr(norm.pulled, "direct", norm.pulled))
    if source is None or not path.cotangent:
        return None
    mine = [t.times(Term(1.0, ((norm.x, VARIABLE),))) for t in as_terms(path)]
    mine, other = (
        collected([part for term in terms for part in unfolded(term)]) for terms in (mine, as_terms(source))
    )
    if len(mine) != 1 or len(other) != 1:
        return None
    found = ratio(mine[0], other[0])
    if found is None or any(field is not norm.squares for field, _ in found.functions):
        return None
    function = dict(found.functions).get(norm.squares)
    return None if function is None else _times(function, found.factor)


def _times(f: Scalar, factor: float) -> Scalar:
    return Scalar(torch.mul, (f, factor))


def _plus(f: Scalar, g: Scalar) -> Scalar:
    return Scalar(torch.add, (f, g))


def _unspread(x: Field) -> Field:
    """What was the same along the last dimension before it was spread."""
    if isinstance(x, Made) and x.key[0] == "expand" and x.parts[0].shape[-1:] == (1,):  # type: ignore[index]
        return x.parts[0]
    return x


def _summed(x: Field) -> Field | None:
    """What x is the sum of over the last dimension."""
    if isinstance(x, Made) and x.key[0] == "sum" and x.key[1] == (len(x.parts[0].shape) - 1,):  # type: ignore[index]
        return x.parts[0]
    return None


# Paths


def paths(context: Context, x: Field, factor: float = 1.0) -> Iterator[tuple[float, Field]]:
    """What a gradient is the sum of."""
    total = flat(x)
    if isinstance(total, Sum):
        for each, part in total.terms:
            yield from paths(context, view(context, None, part, x.shape), factor * each)
    else:
        yield factor, x


def flat(x: Field) -> Field:
    """What x is a view of."""
    while isinstance(x, Made) and x.key[0] == "view":  # type: ignore[index]
        x = x.parts[0]
    return x
