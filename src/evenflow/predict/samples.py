"""How far the mean square of finitely many entries lies from its mean.

A tensor's entries are a sample. Over all pairs of entries i, j, the variance of
ln(mean square) is

    own = mean_ij cov(x_i², x_j²) / (E x²)²,

which is 2/n for n independent Gaussian entries and 5/n for their ReLU, and does not
shrink with the batch where samples are correlated. For Gaussian fields of mean m and
covariance c it is mean_ij (2 c² + 4 m_i m_j c)/(E x²)²; for products of functions it is
the table of their squares. What is known, such as the labels in p − y, is part of the
mean, place by place, though the table holds only its average.

An orthogonal matrix keeps the length of a vector, so that a product of n outputs from
N inputs has 1 − n/N of that, or nothing. A function with E f² ∝ q^k of it has k² of what
is missing less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evenflow.predict import reuse
from evenflow.predict.axes import Array, weighted
from evenflow.predict.combine import align
from evenflow.predict.expressions import Expression, Term, as_terms
from evenflow.predict.fields import Field, Leaf, Made, Sum, rearranged_leaf
from evenflow.predict.lazy import kept
from evenflow.predict.scalar import Scalar, expect_pair, times
from evenflow.predict.table import Table


@kept
def own(field: Field) -> float:
    """Variance of ln(mean square) from the tensor's finite size."""
    return max(_as_drawn(field) - _missing(field), 0.0)


@kept
def own_of_sample(field: Field) -> float:
    """``own`` of one sample, the first dimension."""
    return _of_sample(field) * share_left(field)


def _of_sample(field: Field) -> float:
    over = tuple(range(1, len(field.shape)))
    terms = as_terms(field) if isinstance(field, Expression) else ()
    if len(terms) == 1 and any(not f.linear for _, f in terms[0].functions):
        name = field.name[0] if isinstance(field, Expression) and field.as_one is None else None
        name = None if name is None else ("own of a sample", name)
        return reuse.once(name, lambda: _of_product(field, terms[0], over))
    return 2 / features(field)


def own_of_sum(field: Field, over: Sequence[int]) -> float:
    """Variance of ln(mean square) of the sum over some dimensions, from the size of the others.

    What fourth moments add to that of a Gaussian tensor they add to that of its sums too: so it
    is where the same factor stands at all places, and where all places are independent.
    """
    chance = _chance(field)
    if chance is not None:
        return _gaussian(field.table.summed(over), None, chance.summed(over))
    number = reuse.up_to_scale(field.table)[0]
    name = None if number is None else ("own of a sum", number, tuple(over))
    found = reuse.once(name, lambda: _gaussian(field.table.summed(over), None))
    gaussian = reuse.once(None if number is None else ("own", number), lambda: _gaussian(field.table, None))
    return max(found + _as_drawn(field) - gaussian, 0.0) * share_left(field)


def share_left(field: Field) -> float:
    """Of what independent weights would give; less behind orthogonal ones."""
    whole = _as_drawn(field)
    return own(field) / whole if whole > 0 else 1.0


def features(field: Field) -> float:
    """As how many independent Gaussian entries those of one sample count."""
    over = tuple(range(1, len(field.shape)))
    number = reuse.up_to_scale(field.table)[0]
    name = None if number is None else ("features", number)
    return 2 / max(reuse.once(name, lambda: _gaussian(field.table, over)), 1e-12)


@kept
def _as_drawn(field: Field) -> float:
    """``own``, were the entries of all weights independent."""
    if (isinstance(field, Leaf) and not field.cotangent) or field.mean_square <= 0:
        return 0.0
    if isinstance(field, Expression) and field.permuted is not None:
        return _as_drawn(field.permuted)
    chance = _chance(field)
    if chance is not None:
        return _gaussian(field.table, None, chance)
    terms = as_terms(field) if isinstance(field, Expression) else ()
    if len(terms) == 1 and any(not f.linear for _, f in terms[0].functions):
        name = field.name[0] if isinstance(field, Expression) and field.as_one is None else None
        return reuse.once(None if name is None else ("own", name), lambda: _of_product(field, terms[0], None))
    number = reuse.up_to_scale(field.table)[0]
    return reuse.once(None if number is None else ("own", number), lambda: _gaussian(field.table, None))


@kept
def _missing(field: Field) -> float:
    """What a product with an orthogonal matrix, and a function of it, has less."""
    if isinstance(field, Made) and len(field.parts) == 1:
        return _missing(field.parts[0])
    if isinstance(field, Made) and field.key[0] == "contract":  # type: ignore[index]
        inputs, out = field.key[1].split("->")  # type: ignore[index]
        for weight, letters in zip(field.parts, inputs.split(","), strict=True):
            leaf = rearranged_leaf(weight)
            if leaf is not None and leaf.orthogonal:
                size_in, size_out = (
                    math.prod(n for n, i in zip(weight.shape, letters, strict=True) if (i in out) == produced)
                    for produced in (False, True)
                )
                return _as_drawn(field) * min(size_out / size_in, 1.0)
        return 0.0
    if isinstance(field, Sum):
        total = sum(factor**2 * part.mean_square for factor, part in field.terms)
        if not total > 0:
            return 0.0
        return sum((f**2 * p.mean_square / total) ** 2 * _missing(p) for f, p in field.terms)
    if isinstance(field, Expression) and len(terms := as_terms(field)) == 1:
        return sum(
            (1.0 if f.linear else exponent(atom, f)[0]) ** 2 * missing
            for atom, f in terms[0].functions
            if (missing := _missing(atom))
        )
    return 0.0


@kept
def _known(field: Field) -> bool:
    """Whether nothing in a tensor is drawn with the weights."""
    parts: Sequence[Field] = ()
    if isinstance(field, Made):
        parts = field.parts
    elif isinstance(field, Sum):
        parts = [part for _, part in field.terms]
    elif isinstance(field, Expression):
        parts = field.atoms
    leaf = isinstance(field, Leaf) and (field.known or not field.tags)
    return leaf or (bool(parts) and all(map(_known, parts)))


def _chance(field: Field) -> Table | None:
    """Covariances in a tensor of which a part is known; None where no part is."""
    if isinstance(field, Made) and len(field.parts) == 1:
        inner = _chance(field.parts[0])
        return None if inner is None else field.rule(inner)
    if not isinstance(field, Sum):
        return None
    memory = field.__dict__
    if "_chance" not in memory:
        drawn = [(factor, part) for factor, part in field.terms if not _known(part)]
        memory["_chance"] = None
        if 0 < len(drawn) < len(field.terms):
            (factor, part), *others = drawn
            table = Sum(field.shape, drawn).table if others else part.table.scaled(factor)
            left, right = table.sides(table.means)
            table = Table(table.dims, table.second - left * right, None)
            memory["_chance"] = align([field.table, table], field.shape)[1][1]
    found: Table | None = memory["_chance"]
    return found


def _of_product(field: Field, term: Term, dims: tuple[int, ...] | None) -> float:
    """From the table of the squares of a product of functions.

    A factor like the 1/σ of a norm, of something that is far from zero, has a square whose
    logarithm varies by that of its argument: the Gaussian that stands for the argument comes
    too close to zero for powers of 1/σ.
    """
    far = [(atom, f) for atom, f in term.functions if not f.linear and _far_from_zero(atom)]
    total = sum(exponent(atom, f)[0] ** 2 * _as_drawn(atom) for atom, f in far)
    squares = tuple((atom, times(f, f)) for atom, f in term.functions if (atom, f) not in far)
    if not squares:
        return total
    table = Expression(field.shape, [Term(1.0, squares)]).table
    left, right = table.sides(table.means)
    return total + _relative(table, table.second - left * right, table.means, dims)


FAR = 3.0
"""Standard deviations from zero: .1 % of a Gaussian, and nothing of a χ², lies beyond it."""


def _far_from_zero(atom: Field) -> bool:
    mean, variance = _by_segments(atom)
    return bool((mean**2 > FAR**2 * variance).all())


def _by_segments(atom: Field) -> tuple[Array, Array]:
    """Mean and variance of the entries; that places differ in their mean is no spread."""
    mean = atom.table.means
    return mean, np.maximum(atom.table.diagonal - mean**2, 0.0)


def _gaussian(table: Table, dims: tuple[int, ...] | None, chance: Table | None = None) -> float:
    """As :func:`_relative`, with cov(x_i², x_j²) = 2 c² + 4 m_i m_j c of a Gaussian tensor.

    Args:
        table: Of it.
        dims: As there.
        chance: c, where the means are more than the table knows.
    """
    if chance is None:
        left, right = table.sides(table.means)
        covariance = table.second - left * right
    else:
        covariance = chance.second
    values = 4 * table.second * covariance - 2 * covariance**2
    return min(_relative(table, values, table.diagonal, dims), 2.0)


def _relative(table: Table, values: Array, squares: Array, dims: tuple[int, ...] | None) -> float:
    """Mean of cov(x_i², x_j²) over pairs that differ freely along ``dims``, against the square of their mean.

    Along the other dimensions the pairs agree, and places count by their share of the mean square.

    Args:
        table: Whose axes those are.
        values: cov(x_i², x_j²) by pair classes.
        squares: E x_i² by segments.
        dims: Dimensions; all of them for None.
    """
    free = [dims is None or dim in dims for dim, axes_of in enumerate(table.dims) for _ in axes_of]
    weights = np.ones(())
    for at, (axis, pairs) in reversed(list(enumerate(zip(table.axes, free, strict=True)))):
        if pairs:
            values = weighted(values, at, axis.shares)
            squares = weighted(squares, at, axis.weights)
        else:
            values = values[(slice(None),) * at + (axis.agree,)]
            weights = np.multiply.outer(axis.weights, weights)
    total = float((squares * weights).sum())
    if total <= 0:
        return 0.0
    each = np.divide(values, squares, out=np.zeros_like(values), where=squares > 0)
    return max(float((each * weights).sum()) / total, 0.0)


STEP = 0.1
"""Of ln q in differences, half of them."""


def exponent(atom: Field, f: Scalar) -> tuple[float, float]:
    """First and second derivative of ln E f² by ln q; of what is far from zero, at its mean.

    There a Gaussian comes too close to zero for powers of 1/σ, as in :func:`_of_product`.
    """
    number = reuse.as_it_is(atom.table)
    return reuse.once(None if number is None else ("exponent", number, f.key), lambda: _differences(atom, f))


def _differences(atom: Field, f: Scalar) -> tuple[float, float]:
    mean, variance = _by_segments(atom)
    if _far_from_zero(atom):
        variance = np.zeros_like(variance)
    values = []
    for scale in (math.exp(-STEP), 1.0, math.exp(STEP)):
        m, v = mean * math.sqrt(scale), variance * scale
        squares = expect_pair(f, f, (m, m), (v, v), v)
        values.append(float(atom.table.averaged_over(range(len(atom.shape)), squares).item()))
    if min(values) <= 0:
        return 0.0, 0.0
    low, middle, high = map(math.log, values)
    return (high - low) / (2 * STEP), (high - 2 * middle + low) / STEP**2
