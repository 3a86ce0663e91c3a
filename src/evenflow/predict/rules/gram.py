"""Scalar products of tokens: what one pair has more or less than its mean, where it counts twice.

Values and keys are both linear in the same tokens x_j. So the gradient of a query,

    Σ_j p_j (g·v_j − Σ_k p_k g·v_k) k_j,

has the Gram matrix G_jj' = x̃_j·x̃_j' of its n tokens (less their mean) in it twice. Its
entries at j ≠ j' are zero on average, their squares are not: with d_eff effective
directions, d_eff = (tr Σ)²/tr Σ² for the covariance Σ of the tokens,

    E G_jj'² = κ E G_jj²,   κ = 1/d_eff,     Σ_jj' E G_jj'² = n (1 + (n − 1) κ) E G_jj².

Patches of 4 × 4 pixels have at most 48 directions, however wide the layers behind them,
so 64 of them more than double the square of that gradient.

The same goes for the gradient of a layer u = W x with a function φ behind it, Σ_t h_t φ'(u_t) x_t:
E φ'(u)φ'(u') depends on the pair's E u u', and so it has δ times its slope, E φ''(u)φ''(u').
Before the layer, in the gradient of the gain of a norm, Σ_t (Wᵀg_t)_a x_ta, Wᵀg_t has besides
a part along x_t, for W is the same: Σ_i W_ia φ'(u_i) h_i has by Stein's lemma the part
x_ta σ² Σ_i φ''(u_i) h_i. To the square of the sum it adds as much as δ does with κ = 1/n,
n the width of x.

Pair tables hold means over pairs. Here δ_jj' = G_jj' − mean, j ≠ j', goes through the same
linear ops as a table of its own (:class:`Fluctuation`), and where two operands of a
product both have it at the same pairs, E δ² is added.

κ of a layer's output y = W x of n units: κ_y = κ_x + (1 + κ_x)/n [Gaussian W]. Of a sum of
independent parts with shares w of the square: Σ_a w_a² κ_a + Σ_a≠b w_a w_b / n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from evenflow.predict import reuse
from evenflow.predict.axes import Array, agreeing
from evenflow.predict.combine import align
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Field, Made, Sum, rearranged_leaf
from evenflow.predict.lazy import cached_property
from evenflow.predict.rules.euler import flat
from evenflow.predict.rules.joining import Joined
from evenflow.predict.rules.normalised import Normalised, pair_average
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.scalar import Scalar, expect_pair
from evenflow.predict.table import Table

NEGLIGIBLE = 0.01
"""(n − 1) κ below which a gradient is off by less than .3 %."""


@dataclass(frozen=True)
class Fluctuation:
    """How far the pair table of one pair of tokens is from its mean over pairs.

    Attributes:
        tokens: Whose Gram matrix it is.
        work_out: Gives the table, which most tensors are never asked for.
    """

    tokens: Field
    work_out: Callable[[], Table]

    @cached_property
    def table(self) -> Table:
        """Times δ/√κ; zero for a token with itself."""
        return self.work_out()


def fluctuation(x: Field) -> Fluctuation | None:
    """That of a field; None if it has none that is known."""
    if "_fluctuation" not in x.__dict__:
        x.__dict__["_fluctuation"] = _fluctuation(x)
    found: Fluctuation | None = x.__dict__["_fluctuation"]
    return found


def _fluctuation(x: Field) -> Fluctuation | None:
    if isinstance(x, Made):
        if len(x.parts) == 1:
            return _through(x, 0)
        if x.key[0] == "contract":  # type: ignore[index]
            return _through_product(x)
    linear = _scaled(x)
    if linear is not None:
        factor, part = linear
        found = fluctuation(part)
        return None if found is None else Fluctuation(found.tokens, partial(_times, factor, found))
    if isinstance(x, Softmax):
        sent = None if x.g is None else fluctuation(x.g)
        return None if sent is None else Fluctuation(sent.tokens, partial(_through_softmax, x, sent))
    if x.cotangent:
        return _by_slope(x) if isinstance(x, Expression) and len(x.terms) == 1 else None
    return None if len(x.shape) < 2 or min(x.shape[-2:]) < 2 else _of_tokens(x)


def _times(factor: float, found: Fluctuation) -> Table:
    return found.table.scaled(factor)


def _through_softmax(x: Softmax, sent: Fluctuation) -> Table:
    dims, (p, g) = align([x.forward.table, sent.table], x.shape)
    return Table(dims, p.second * g.second, None)


def _by_slope(x: Expression) -> Fluctuation | None:
    """That of h f(u), u = W x: of E f(u) f(u'), by its slope in E u u'."""
    (term,) = x.terms
    for atom, f in term.functions:
        found = None if atom.cotangent or atom.shape != x.shape else fluctuation(atom)
        if found is None or found.tokens is atom or _alike(found.tokens):
            continue
        rest = tuple(pair for pair in term.functions if pair[0] is not atom)
        others = Expression(x.shape, [Term(term.factor, rest)])
        return Fluctuation(found.tokens, partial(_with_slope, others, atom, f, found))
    return None


def _with_slope(others: Field, atom: Field, f: Scalar, found: Fluctuation) -> Table:
    dims, (rest, u, moved) = align([others.table, atom.table, found.table], others.shape)
    counted = moved.second != 0
    second = np.zeros(moved.second.shape)
    second[counted] = (rest.second * moved.second)[counted] * _slopes(u, f, counted)
    return Table(dims, second, None)


def _alike(tokens: Field) -> bool:
    """Whether tokens differ too little for Σ δ² to count beside the square of what they have in common."""
    number = reuse.as_it_is(tokens.table)
    return reuse.once(None if number is None else ("alike", number), lambda: _nearly_one(tokens))


def _nearly_one(tokens: Field) -> bool:
    apart = tokens.table.centred_over([len(tokens.shape) - 2]).mean_square
    return (tokens.shape[-2] - 1) * apart**2 < NEGLIGIBLE * tokens.mean_square**2


def _slopes(u: Table, f: Scalar, counted: npt.NDArray[np.bool_]) -> Array:
    """The slope of E f(u) f(u') in E u u', at some pair classes."""
    variance = np.maximum(u.diagonal - u.means**2, 0.0)
    sides = (*u.sides(u.means), *u.sides(variance))
    mean, mean_other, own, other = (np.broadcast_to(side, counted.shape)[counted] for side in sides)
    limit = 0.99 * np.sqrt(own * other)
    covariance = np.clip(u.second[counted] - mean * mean_other, -limit, limit)
    step = 0.01 * limit
    above, below = (
        expect_pair(f, f, (mean, mean_other), (own, other), covariance + sign * step) for sign in (1, -1)
    )
    return np.divide(above - below, 2 * step, out=np.zeros_like(covariance), where=step > 0)


def _through(x: Made, position: int) -> Fluctuation | None:
    found = fluctuation(x.parts[position])
    if found is None:
        return None

    def of_tables() -> Table:
        return x.rule(*(found.table if i == position else part.table for i, part in enumerate(x.parts)))

    return Fluctuation(found.tokens, of_tables)


def _through_product(x: Made) -> Fluctuation | None:
    """By the operand that is no weight; of a gradient and a tensor both, by the gradient if it has any."""
    if (weight := _weight(x)) is not None:
        return _through(x, 1 - weight)
    first, second = sorted((0, 1), key=lambda i: not x.parts[i].cotangent)
    return _through(x, first) or _through(x, second)


def _weight(x: Made) -> int | None:
    """Which operand is a weight, if one is."""
    for i in (1, 0):
        leaf = rearranged_leaf(x.parts[i])
        if leaf is not None and leaf.table.centred:
            return i
    return None


def _scaled(x: Field) -> tuple[float, Field] | None:
    """X as a number times another field, but for a bias."""
    if isinstance(x, Expression) and len(x.terms) == 1 and len(x.terms[0].functions) == 1:
        part, function = x.terms[0].functions[0]
        return (x.terms[0].factor, part) if function.linear and part.shape == x.shape else None
    if isinstance(x, Sum):
        random = [(factor, part) for factor, part in x.terms if rearranged_leaf(part) is None]
        if len(random) == 1 and random[0][1].shape == x.shape:
            return random[0]
    return None


def _of_tokens(x: Field) -> Fluctuation:
    """Where it begins: tokens are the last dimension but one, their directions the last."""
    return Fluctuation(x, lambda: _unlike(x))


def _unlike(x: Field) -> Table:
    table = x.table.centred_over([len(x.shape) - 2])
    left, right = table.sides(np.sqrt(np.maximum(table.diagonal, 0.0)))
    last = len(table.axes) - len(table.dims[-1])
    counted = agreeing(table.axes, range(last, len(table.axes))) & ~agreeing(table.axes, range(last))
    return Table(table.dims, np.where(counted, left * right, 0.0), None)


def of_both(x: Made) -> Table | None:
    """What E δ² adds to the table of a product; None if its operands do not fluctuate together."""
    first, second = sorted(x.parts, key=lambda part: not part.cotangent)
    a = fluctuation(first)
    b = None if a is None else fluctuation(second)
    if a is None or b is None or a.tokens is not b.tokens:
        return None
    spec: str = x.key[1]  # type: ignore[index]
    letters = dict(zip(map(id, x.parts), spec.partition("->")[0].split(","), strict=True))
    shared = set(letters[id(first)]) & set(letters[id(second)])
    for part, found in ((first, a), (second, b)):
        at = [i for i, letter in enumerate(letters[id(part)]) if letter in shared]
        if _within(found.table, at).any():
            return None  # at other pairs
    kappa = gram_variance(a.tokens)
    if kappa * (a.tokens.shape[-2] - 1) < NEGLIGIBLE:
        return None
    tables = {id(first): a.table, id(second): b.table}
    return x.rule(*(tables[id(part)] for part in x.parts)).scaled(math.sqrt(kappa))


def of_entries(x: Made) -> Table | None:
    """What E δ² adds to a sum over tokens of Wᵀh times the tokens, entry by entry; None if nothing."""
    (product,) = x.parts
    if not isinstance(product, Expression) or len(product.terms) != 1:
        return None
    (term,) = product.terms
    if len(term.functions) != 2 or not all(f.linear for _, f in term.functions):
        return None
    tokens, gradient = sorted((field for field, _ in term.functions), key=lambda field: field.cotangent)
    if tokens.cotangent or not gradient.cotangent or len(tokens.shape) - 1 in x.key[1]:  # type: ignore[index]
        return None
    a, b = fluctuation(gradient), fluctuation(tokens)
    if a is None or b is None or not a.tokens is b.tokens is tokens:
        return None
    kappa = gram_variance(tokens) + (1 / tokens.shape[-1] if _applied(gradient, tokens) else 0.0)
    if kappa * (tokens.shape[-2] - 1) < NEGLIGIBLE:
        return None
    dims, (g, t) = align([a.table, b.table], product.shape)
    return x.rule(Table(dims, g.second * t.second * (kappa * term.factor**2), None))


def _applied(gradient: Field, tokens: Field) -> bool:
    """Whether it is Wᵀh with h a function of W times the tokens."""
    gradient = flat(gradient)
    if not isinstance(gradient, Made) or (weight := _weight(gradient)) is None:
        return False
    leaf, h = rearranged_leaf(gradient.parts[weight]), gradient.parts[1 - weight]
    for atom in h.atoms if isinstance(h, Expression) else ():
        linear = None if atom.cotangent else _scaled(atom)
        u = flat(atom if linear is None else linear[1])
        if isinstance(u, Made) and (at := _weight(u)) is not None and rearranged_leaf(u.parts[at]) is leaf:
            return flat(u.parts[1 - at]) is tokens
    return False


def _within(table: Table, dims: list[int]) -> Array:
    """K where pairs agree along some dimensions."""
    inside = {table.first_axis(dim) + k for dim in dims for k in range(len(table.dims[dim]))}
    index = tuple(axis.agree if at in inside else slice(None) for at, axis in enumerate(table.axes))
    found: Array = table.second[index]
    return found


def gram_variance(x: Field) -> float:
    """κ: E G_jj'² / E G_jj² of two tokens j ≠ j', the last dimension being that of directions."""
    return sum(amplitude**2 for amplitude in _amplitudes(x).values())


def _amplitudes(x: Field) -> dict[int, float]:
    """√κ by what it comes from: parts with the same source fluctuate together."""
    if "_amplitudes" not in x.__dict__:
        x.__dict__["_amplitudes"] = _found_amplitudes(x)
    found: dict[int, float] = x.__dict__["_amplitudes"]
    return found


def _found_amplitudes(x: Field) -> dict[int, float]:
    if isinstance(x, Normalised):
        return _amplitudes(x.x)
    if isinstance(x, Joined):
        shares = _shares(x.parts)
        if x.dim < len(x.shape) - 1:  # tokens
            return _mixed(shares)
        return {id(x): math.sqrt(sum(share**2 * gram_variance(part) for share, part in shares))}
    if isinstance(x, Sum):
        shares = _shares([part for _, part in x.terms], [factor for factor, _ in x.terms])
        apart = 1 - sum(share**2 for share, _ in shares)
        return _mixed(shares) | {id(x): math.sqrt(max(apart, 0.0) / x.shape[-1])}
    if (linear := _scaled(x)) is not None:
        return _amplitudes(linear[1])
    if isinstance(x, Expression) and len(x.atoms) == 1 and len(x.terms) == 1:
        slope = _slope(x.atoms[0], x.terms[0].functions[0][1])
        return {source: slope * amplitude for source, amplitude in _amplitudes(x.atoms[0]).items()}
    found = _amplitudes_made(x) if isinstance(x, Made) else None
    own = [len(x.shape) - 1]
    return {id(x): math.sqrt(_of_entries(x, own, x.shape[-1]))} if found is None else found


def _amplitudes_made(x: Made) -> dict[int, float] | None:
    kind = x.key[0]  # type: ignore[index]
    if kind == "convolution":
        image, kernel = x.parts
        entries = image.shape[1] * math.prod(kernel.shape[2:])
        kappa = _of_entries(image, range(1, len(image.shape)), entries)
        return {id(x): math.sqrt(kappa + (1 + kappa) / x.shape[1])}
    if kind == "contract" and (weight := _weight(x)) is not None:
        inputs = x.parts[1 - weight]
        return _amplitudes(inputs) | {id(x): math.sqrt((1 + gram_variance(inputs)) / x.shape[-1])}
    return _amplitudes(x.parts[0]) if kind in ("view", "permute", "slice") else None


def _mixed(shares: Sequence[tuple[float, Field]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for share, part in shares:
        for source, amplitude in _amplitudes(part).items():
            found[source] = found.get(source, 0.0) + share * amplitude
    return found


def _slope(x: Field, f: Scalar) -> float:
    """D log K̃_f / d log K̃ of two different tokens, K̃ their covariance less its mean over tokens."""
    tokens = len(x.shape) - 2
    mean, square = x.table.average, x.table.mean_square
    apart = x.table.centred_over([tokens]).mean_square
    variance = np.array([square - mean**2])
    if not 0 < apart <= variance[0]:
        return 1.0
    step = 0.01 * apart
    covariance = variance - apart
    at = [
        float(expect_pair(f, f, (np.array([mean]),) * 2, (variance,) * 2, c)[0])
        for c in (covariance - step, covariance + step, variance, covariance)
    ]
    return (at[1] - at[0]) / (2 * step) * apart / (at[2] - at[3]) if at[2] > at[3] else 1.0


def _of_entries(x: Field, over: Sequence[int], n: int) -> float:
    """Of n directions whose covariance is that of the entries along some dimensions."""
    table = x.table.centred_over([dim for dim in range(len(x.shape)) if dim not in over])
    if table.mean_square <= 0:
        return 0.0
    squares = Table(table.dims, (table.second / table.mean_square) ** 2, None)
    entries = math.prod(x.shape[dim] for dim in over)
    others = (pair_average(squares, over) * entries - pair_average(squares, ())) / max(entries - 1, 1)
    return 1 / n + (1 - 1 / n) * others


def _shares(parts: Sequence[Field], factors: Sequence[float] | None = None) -> list[tuple[float, Field]]:
    """Which share of the square of what differs between tokens each part has."""
    squares = []
    for i, part in enumerate(parts):
        centred = part.table.centred_over([max(len(part.shape) - 2, 0)])
        weight = math.prod(part.shape) if factors is None else factors[i] ** 2
        squares.append(weight * centred.mean_square)
    total = sum(squares)
    return [(square / total, part) for square, part in zip(squares, parts, strict=True)] if total > 0 else []
