"""How far one draw of the weights may lie from the mean: the interval of a prediction.

The mean square of a finite tensor fluctuates from draw to draw. Two numbers
describe it, both variances of ln(mean square):

* *own*: a tensor's entries are a sample. Over all pairs of entries i, j,

      own = mean_ij cov(x_i², x_j²) / (E x²)²,

  which is 2/n for n independent Gaussian entries and 5/n for their ReLU, and
  does not shrink with the batch where samples are correlated. For Gaussian
  fields of mean m and covariance c it is mean_ij (2 c² + 4 m_i m_j c)/(E x²)²; for
  products of functions it is the table of their squares.
* *inherited*: a product with weights has, given its input, exactly the input's
  mean square times a constant, so it inherits own + inherited of the input. A
  function f with E f² ∝ q^k passes on k² of it; normalisation passes on nothing.

  A batch averages part of this away, but less and less: through L layers of
  width n the squared cosine of two samples' gradients grows to L/n, so with
  β₁ = 2L/n for one sample, Σ_l (2/n)(l/n) = β₁²/4 is left however large the batch.

A gradient of parameters, Σ g x over samples and places, is in part that of the mean of g,
which makes a share ρ of its mean square. That mean fluctuates as one sample does, or
more: 3 channels of an output that is alike everywhere are 3 numbers. With β_Σ what the
*sum* of g meets on its way (own is that of operands summed over all but channels),

    β = (ρ √β_Σ + (1 − ρ) √β_batch)².

The sum of own and inherited, β, is that of Hanin for chains: the logarithm of what one draw shows is
about N(log E − β/2, β). The half-width of a 95 % interval in decades of RMS is

    1.96 √β / (2 ln 10).

References:
    Hanin, "Which neural net architectures give rise to exploding and vanishing
    gradients?", 2018, Theorem 1; Hanin & Nica, "Products of many large random
    matrices and gradients in deep neural networks", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from evenflow.flow import Stats
from evenflow.predict import reuse
from evenflow.predict.axes import Array, weighted
from evenflow.predict.expressions import Expression, Term, as_terms
from evenflow.predict.fields import Field, Leaf, Made, Sum
from evenflow.predict.scalar import Scalar, expect_pair, times
from evenflow.predict.table import Table

MULTIPLYING = frozenset({"contract", "convolution", "kernel gradient"})
NORMAL_95 = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class PredictedStats(Stats):
    """Statistics with how far single draws of the weights scatter.

    Attributes:
        log_variance: β; of several tensors the largest.
    """

    log_variance: float = 0.0

    def merge(self, other: Stats) -> PredictedStats:
        """Statistics of the entries of both."""
        both = Stats.merge(self, other)
        beta = other.log_variance if isinstance(other, PredictedStats) else 0.0
        largest = max(self.log_variance, beta)
        return PredictedStats(both.count, both.mean, both.mean_square, log_variance=largest)

    @property
    def plain(self) -> Stats:
        """Without the scatter."""
        return Stats(self.count, self.mean, self.mean_square)


def half_width(beta: float) -> float:
    """Half-width in decades of RMS of the 95 % interval for a variance ``beta`` of ln(mean square)."""
    return NORMAL_95 * math.sqrt(max(beta, 0.0)) / (2 * math.log(10))


class Inherited(NamedTuple):
    """Variance of ln(mean square) that a tensor has from what it was made from, as three averages feel it.

    Attributes:
        batch: That over a batch, where fluctuations of its samples partly cancel.
        sample: That over one sample.
        sum: The sum over samples and places.
    """

    batch: float
    sample: float
    sum: float


_NOTHING = Inherited(0.0, 0.0, 0.0)


def log_variance(field: Field, *, parameter: bool = False) -> float:
    """β: variance over draws of the weights of ln(mean square).

    Args:
        field: The tensor.
        parameter: Whether it is the gradient of a parameter.
    """
    passed, entries = inherited(field), own(field)
    batch = passed.batch + entries + passed.sample**2 / 4
    if not parameter:
        return batch
    while isinstance(field, Made) and field.key[0] in ("view", "permute"):  # type: ignore[index]
        field = field.parts[0]
    if not isinstance(field, Made):
        return inherited(field).sum + own(field)
    common = _common(field)
    summed = _through_op(field, parameter=True).sum + own(field)
    return (common * math.sqrt(summed) + (1 - common) * math.sqrt(batch)) ** 2


def _common(field: Made) -> float:
    """ρ: the share of the mean square of a gradient Σ g x that the mean of g makes."""
    numbers, _ = reuse.numbers(field.parts)
    name = None if numbers is None else ("common", field.key, field.shape, numbers)
    return reuse.once(name, lambda: _share_of_mean(field))


def _share_of_mean(field: Made) -> float:
    g, *others = sorted(field.parts, key=lambda part: not part.cotangent)
    table = g.table
    over = _summed_out(field.key, field.parts.index(g), len(g.shape))
    alike = table.second
    for at in (table.first_axis(dim) + k for dim in over for k in range(len(table.dims[dim]))):
        average = np.expand_dims(weighted(alike, at, table.axes[at].shares), at)
        alike = np.repeat(average, table.axes[at].classes, at)
    tables = {id(part): part.table for part in others} | {id(g): Table(table.dims, alike, table.mean)}
    share = field.rule(*(tables[id(part)] for part in field.parts)).mean_square / field.table.mean_square
    return min(max(share, 0.0), 1.0)


def own(field: Field, dims: tuple[int, ...] | None = None) -> float:
    """Variance of ln(mean square) from the tensor's finite size along ``dims`` (all of them for None)."""
    memory: dict[Any, float] = field.__dict__.setdefault("_own", {})
    if dims not in memory:
        memory[dims] = _own(field, dims)
    return memory[dims]


def inherited(field: Field) -> Inherited:
    """Variances of ln(mean square) passed on by what the tensor was made from."""
    memory = field.__dict__
    if "_inherited" not in memory:
        memory["_inherited"] = _inherited(field)
    found: Inherited = memory["_inherited"]
    return found


def _own(field: Field, dims: tuple[int, ...] | None) -> float:
    if (isinstance(field, Leaf) and not field.cotangent) or field.mean_square <= 0:
        return 0.0
    terms = as_terms(field) if isinstance(field, Expression) else ()
    if len(terms) == 1 and any(not f.linear for _, f in terms[0].functions):
        name = field.name[0] if isinstance(field, Expression) and field.as_one is None else None
        return reuse.once(
            None if name is None else ("own", name, dims), lambda: _of_product(field, terms[0], dims)
        )
    number = reuse.up_to_scale(field.table)[0]
    return reuse.once(None if number is None else ("own", number, dims), lambda: _gaussian(field.table, dims))


def _of_product(field: Field, term: Term, dims: tuple[int, ...] | None) -> float:
    """From the table of the squares of a product of functions.

    A factor like the 1/σ of a norm, of something that is far from zero, has a square whose
    logarithm varies by that of its argument: the Gaussian that stands for the argument comes
    too close to zero for powers of 1/σ.
    """
    far = [(atom, f) for atom, f in term.functions if not f.linear and _far_from_zero(atom)]
    total = 0.0
    for atom, f in far:
        added = len(field.shape) - len(atom.shape)
        of_atom = None if dims is None else tuple(dim - added for dim in dims if dim >= added)
        total += _exponent(atom, f) ** 2 * own(atom, of_atom)
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


def _gaussian(table: Table, dims: tuple[int, ...] | None) -> float:
    """As :func:`_relative`, with cov(x_i², x_j²) = 2 c² + 4 m_i m_j c of a Gaussian tensor."""
    left, right = table.sides(table.means)
    products = left * right
    covariance = table.second - products
    values = 2 * covariance**2 + 4 * products * covariance
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


def _inherited(field: Field) -> Inherited:
    if isinstance(field, Leaf):
        return _NOTHING
    if isinstance(field, Made):
        return _through_op(field)
    if isinstance(field, Sum):
        weights = [factor**2 * part.mean_square for factor, part in field.terms]
        return _together(weights, [inherited(part) for _, part in field.terms])
    if isinstance(field, Expression):
        return _passed_on(field)
    parts = getattr(field, "spread_from", None)
    if parts is None:
        of_parts = [inherited(part) for part in getattr(field, "parts", ())]
        return Inherited(*map(max, zip(*of_parts, strict=True))) if of_parts else _NOTHING
    found = [inherited(part) for part in parts]
    scale = getattr(field, "scaled_by", None)  # 1/σ of a norm
    if scale is not None:
        found += [inherited(scale), Inherited(*[own(scale)] * 3)]
    return _added(found)


def _added(parts: Sequence[Inherited]) -> Inherited:
    """Of independent fluctuations variances add up."""
    if len(parts) == 1:
        return parts[0]
    return Inherited(*map(sum, zip(*parts, strict=True))) if parts else _NOTHING


def _together(weights: Sequence[float], parts: Sequence[Inherited]) -> Inherited:
    """Of parts of a sum that fluctuate together deviations add up, by their shares of the mean square."""
    total = sum(weights)
    if not total > 0:
        return _NOTHING
    shares = [weight / total for weight in weights]
    return Inherited(
        *(
            sum(share * math.sqrt(variance) for share, variance in zip(shares, each, strict=True)) ** 2
            for each in zip(*parts, strict=True)
        )
    )


def _through_op(field: Made, *, parameter: bool = False) -> Inherited:
    roots = [_root(part) for part in field.parts]
    random = [
        (i, part)
        for i, (part, root) in enumerate(zip(field.parts, roots, strict=True))
        if not isinstance(root, Leaf) or root.cotangent
    ]
    found = [inherited(part) for _, part in random]
    if isinstance(field.key, tuple) and field.key[0] in MULTIPLYING:
        orthogonal = any(isinstance(root, Leaf) and root.orthogonal for root in roots)
        found += [
            _of_operand(field, i, alone=len(random) == 1 and not parameter)
            for i, part in random
            # an orthogonal matrix keeps the length of a vector
            if not orthogonal or isinstance(part, Expression)
        ]
    return _added(found)


def _of_operand(field: Made, position: int, *, alone: bool) -> Inherited:
    """What a product meets at one of its operands.

    Args:
        field: The product.
        position: Of the operand.
        alone: Whether the other operand is a weight; else it is a gradient's other factor, of a parameter.
    """
    part = field.parts[position]
    summed = _summed_out(field.key, position, len(part.shape))
    channels = (1,) if field.key[0] == "convolution" else summed  # type: ignore[index]
    rest = tuple(dim for dim in range(len(part.shape)) if dim not in channels) if alone else summed
    batch = own(part)
    return Inherited(batch, own(part, summed) if alone else batch, _of_sum(part.table, rest))


def _of_sum(table: Table, over: tuple[int, ...]) -> float:
    """Variance of ln(mean square) of the sum over some dimensions, from the size of the others."""
    number = reuse.up_to_scale(table)[0]
    name = None if number is None else ("own of a sum", number, over)
    return reuse.once(name, lambda: _gaussian(table.summed(over), None))


def _root(field: Field) -> Field:
    """What a field is a rearrangement of."""
    while isinstance(field, Made) and len(field.parts) == 1:
        field = field.parts[0]
    return field


@lru_cache(maxsize=4096)
def _summed_out(key: Any, position: int, rank: int) -> tuple[int, ...]:
    """Over which dimensions of an operand an op sums."""
    match key[0]:
        case "contract":
            inputs, out = key[1].split("->")
            return tuple(i for i, letter in enumerate(inputs.split(",")[position]) if letter not in out)
        case "sum":
            return tuple(key[1])
        case "convolution":  # channels and taps
            return tuple(range(1, rank))
        case "kernel gradient":
            return tuple(d for d in range(rank) if d != 1)
    return ()


def _passed_on(field: Expression) -> Inherited:
    """Factors of one product fluctuate together: x/√(mean x²) passes on nothing."""
    batch = sample = total = weight = 0.0
    for term in field.terms:
        in_batch = in_sample = in_sum = 0.0
        for atom, f in term.functions:
            passed = inherited(atom)
            if passed != _NOTHING:
                exponent = 1.0 if f.linear else _exponent(atom, f)
                in_batch += exponent * math.sqrt(passed.batch)
                in_sample += exponent * math.sqrt(passed.sample)
                in_sum += exponent * math.sqrt(passed.sum)
        share = term.factor**2
        batch += share * in_batch**2
        sample += share * in_sample**2
        total += share * in_sum**2
        weight += share
    return Inherited(batch / weight, sample / weight, total / weight) if weight > 0 else _NOTHING


def _exponent(atom: Field, f: Scalar) -> float:
    """D log E f² / d log q, by a difference of 2 %; of what is far from zero, at its mean.

    There a Gaussian comes too close to zero for powers of 1/σ, as in :func:`_of_product`.
    """
    number = reuse.as_it_is(atom.table)
    return reuse.once(None if number is None else ("exponent", number, f.key), lambda: _difference(atom, f))


def _difference(atom: Field, f: Scalar) -> float:
    mean, variance = _by_segments(atom)
    if _far_from_zero(atom):
        variance = np.zeros_like(variance)
    values = []
    for scale in (0.99, 1.01):
        m, v = mean * math.sqrt(scale), variance * scale
        squares = expect_pair(f, f, (m, m), (v, v), v)
        values.append(float(atom.table.averaged_over(range(len(atom.shape)), squares).item()))
    if min(values) <= 0:
        return 0.0
    return (math.log(values[1]) - math.log(values[0])) / (math.log(1.01) - math.log(0.99))
