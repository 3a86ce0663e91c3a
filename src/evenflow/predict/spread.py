"""How far one draw of the weights may lie from the mean: the interval of a prediction.

The mean square of a finite tensor fluctuates from draw to draw. β is the variance of
its logarithm. It has two parts:

* *own* (:mod:`evenflow.predict.samples`): a tensor's entries are a sample.
* *inherited*: a product with weights has, given its input, exactly the input's mean
  square times a constant, so it inherits all fluctuations of the input, own ones too.

Each sample of entries that enters a product with weights is a *source*, and what comes
after responds to it linearly,

    ln S − ln E S ≈ Σ_s a_s ε_s,   β = Σ_s a_s²,   Var ε_s = 1.

A function f with E f² ∝ q^k responds with k times the a of its argument; normalisation
does not respond; factors of a product add their a. Since a is kept by source, what
comes back along the same path counts as one: a gradient g φ'(h) depends on the h of
every layer below it, through g too, and so do both factors of a parameter's gradient.

Two S are followed, the mean square and the mean square of the sum over samples and
places. A gradient of parameters, Σ g x, is the second for the share ρ of its mean square
that the mean of g makes, and the first for the rest. How that share differs from draw
to draw is not followed.

The mean of ln S lies beside ln E S, by −β/2 in chains (:mod:`evenflow.predict.responses`). A
prediction is E S; 95 % of the draws lie within 1.96 √β and that shift of it. In decades of
RMS both are divided by 2 ln 10.

Samples of independent weights average out, as far as they do: through L layers of
width n the squared cosine of two samples' gradients grows to v = L/n, and 2 v/n of
each layer's source stays however large the batch. An elementwise factor f decreases
it by (E f_a f_b / E f²)², a, b two samples.

References:
    Hanin, "Which neural net architectures give rise to exploding and vanishing
    gradients?", 2018, Theorem 1; Hanin & Nica, "Products of many large random
    matrices and gradients in deep neural networks", 2019: for chains the logarithm is
    about N(log E − β/2, β).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from evenflow.flow import Stats
from evenflow.predict import reuse
from evenflow.predict.axes import weighted
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Field, Leaf, Made, Sum
from evenflow.predict.responses import (
    NONE,
    NOTHING,
    Moments,
    Response,
    Responses,
    mixed,
    moments_with_source,
    of_factors,
    of_function,
    of_product,
    of_sum,
    root,
    with_source,
)
from evenflow.predict.rules.softmax import Softmax
from evenflow.predict.samples import exponent, features, own, own_of_sample, own_of_sum, share_left
from evenflow.predict.table import Table

MULTIPLYING = frozenset({"contract", "convolution", "kernel gradient"})
NORMAL_95 = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class PredictedStats(Stats):
    """Statistics with how far single draws of the weights scatter.

    Attributes:
        half_width: Half-width in decades of RMS of the 95 % interval; of several tensors the largest.
    """

    half_width: float = 0.0

    def merge(self, other: Stats) -> PredictedStats:
        """Statistics of the entries of both."""
        both = Stats.merge(self, other)
        theirs = other.half_width if isinstance(other, PredictedStats) else 0.0
        return PredictedStats(
            both.count, both.mean, both.mean_square, half_width=max(self.half_width, theirs)
        )

    @property
    def plain(self) -> Stats:
        """Without the scatter."""
        return Stats(self.count, self.mean, self.mean_square)


def half_width(field: Field, *, parameter: bool = False) -> float:
    """Half-width in decades of RMS, around E, of the interval that 95 % of the draws lie in.

    Args:
        field: The tensor.
        parameter: Whether it is the gradient of a parameter.
    """
    found = response(field, parameter=parameter)
    return in_decades(found.variance, found.shift)


def in_decades(variance: float, shift: float = 0.0) -> float:
    """Half-width in decades of RMS of the 95 % interval, from moments of ln(mean square)."""
    return (NORMAL_95 * math.sqrt(variance) + abs(shift)) / (2 * math.log(10))


def response(field: Field, *, parameter: bool = False) -> Moments:
    """What ln(mean square) of a tensor responds with to all sources, its own entries among them."""
    if not parameter:
        found = inherited(field)
        return moments_with_source(found.square, field, _of_entries(field, found.overlap))
    while isinstance(field, Made) and field.key[0] in ("view", "permute"):  # type: ignore[index]
        field = field.parts[0]
    if not isinstance(field, Made):
        return moments_with_source(inherited(field).sum, field, own(field))
    squares, sums = of_factors(_of_parts(field, parameter=True))
    common = 1.0 if field.key[0] == "sum" else _common(field)  # type: ignore[index]
    return moments_with_source(mixed([1 - common, common], [squares, sums]), field, own(field))


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


def inherited(field: Field, *, keep: bool = True) -> Responses:
    """Responses to the sources that a tensor was made from.

    Args:
        field: The tensor.
        keep: Whether it will be asked for again.
    """
    memory: dict[str, Responses] = field.__dict__
    found = memory.get("_inherited")
    if found is None:
        found = _inherited(field)
        if keep:
            memory["_inherited"] = found
    return found


def _inherited(field: Field) -> Responses:
    if isinstance(field, Leaf):
        return NOTHING
    if isinstance(field, Made):
        return _through_op(field)
    if isinstance(field, Sum):
        found = _of_softmax(field)
        if found is not None:
            return found
        weights = [factor**2 * part.mean_square for factor, part in field.terms]
        return of_sum(weights, [inherited(part) for _, part in field.terms])
    if isinstance(field, Expression):
        return _of_terms(field)
    parts: Sequence[Field] | None = getattr(field, "spread_from", None)
    if parts is None:
        parts = getattr(field, "parts", ())
        assert parts is not None
        return of_sum(
            [part.mean_square * math.prod(part.shape) for part in parts], [inherited(p) for p in parts]
        )
    passed = [inherited(part) for part in parts]
    scale = getattr(field, "scaled_by", None)  # 1/σ of a norm
    if scale is not None:
        of_scale = inherited(scale)
        whole = with_source(of_scale.square, scale, own(scale)).times(-1.0)
        passed.append(Responses(whole, whole))
    return of_product(passed) if passed else NOTHING


def _through_op(field: Made) -> Responses:
    found = _of_parts(field)
    return of_product(found) if found else NOTHING


def _of_parts(field: Made, *, parameter: bool = False) -> list[Responses]:
    """What an op passes on of each operand that is no weight."""
    random = [
        (i, part)
        for i, (part, origin) in enumerate(zip(field.parts, map(root, field.parts), strict=True))
        if not isinstance(origin, Leaf) or origin.cotangent
    ]
    if not (isinstance(field.key, tuple) and field.key[0] in MULTIPLYING):
        return [inherited(part) for _, part in random]
    alone = len(random) == 1 and not parameter
    return [_of_operand(field, i, alone=alone) for i, part in random]


def _of_operand(field: Made, position: int, *, alone: bool) -> Responses:
    """What a product passes on of one of its operands.

    Args:
        field: The product.
        position: Of the operand.
        alone: Whether the other operand is a weight; else it is a gradient's other factor, of a parameter.
    """
    part = field.parts[position]
    passed = inherited(part, keep=alone)  # by a parameter's gradient asked for once, often transposed
    summed = _summed_out(field.key, position, len(part.shape))
    channels = (1,) if field.key[0] == "convolution" else summed  # type: ignore[index]
    rest = tuple(dim for dim in range(len(part.shape)) if dim not in channels) if alone else summed
    overlap, apart, variance = passed.overlap, passed.apart, _of_entries(part, passed.overlap)
    if alone:
        apart = with_source(apart, part, own_of_sample(part) - variance)
        if part.cotangent:
            overlap += share_left(part) / features(part)
    return Responses(
        with_source(passed.square, part, variance),
        with_source(passed.sum, part, own_of_sum(part, rest)),
        overlap,
        apart,
    )


def _of_entries(field: Field, overlap: float) -> float:
    """The variance of the source that a tensor's entries are.

    2 v/n of it is what the cosines of two samples add; none for one sample.
    """
    memory: dict[str, float] = field.__dict__
    if "_of_entries" not in memory:
        variance = own(field)
        if overlap:
            variance += 2 * overlap * (1 - 1 / field.shape[0]) / features(field) * share_left(field)
        memory["_of_entries"] = variance
    return memory["_of_entries"]


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


def _of_terms(field: Expression) -> Responses:
    """Factors of one product fluctuate together: x/√(mean x²) passes on nothing."""
    if field.permuted is not None and len(field.terms) == 1:
        found = inherited(field.permuted)
        if found.overlap:
            linear = [inherited(atom).overlap for atom, f in field.terms[0].functions if f.linear]
            found = found._replace(overlap=max(linear) * _kept(field) ** 2)
        return found
    return _of_each_term(field)


def _of_each_term(field: Expression) -> Responses:
    found, weights = [], []
    for term in field.terms:
        passed = []
        for atom, f in term.functions:
            before = inherited(atom)
            if before.nothing:
                continue
            if f.linear:
                passed.append(before)
            else:
                passed.append(of_function(before, *exponent(atom, f)))
        together = of_product(passed) if passed else NOTHING
        if together.overlap:
            together = together._replace(overlap=together.overlap * _kept(field) ** 2)
        found.append(together)
        single = len(field.terms) == 1
        weights.append(1.0 if single else Expression(field.shape, [term]).table.mean_square)
    return of_sum(weights, found)


def _kept(field: Expression) -> float:
    """E f_a f_b / E f² of two samples, f what a cotangent is multiplied with."""
    name = field.name[0]
    return reuse.once(None if name is None else ("kept", name), lambda: _alike_in_factor(field))


def _alike_in_factor(field: Expression) -> float:
    terms = [
        Term(term.factor, tuple((atom, f) for atom, f in term.functions if not atom.cotangent))
        for term in field.terms
    ]
    factor = Expression(field.shape, terms)
    return _alike(factor.table) if factor.atoms else 1.0


def _alike(table: Table) -> float:
    """E x_a x_b / E x² of two samples, the first dimension."""
    pairs, whole = table.second, table.mean_square
    for at, axis in reversed(list(enumerate(table.axes))):
        if at < len(table.dims[0]):
            pairs = weighted(pairs, at, axis.shares)
        else:
            pairs = weighted(pairs[(slice(None),) * at + (axis.agree,)], at, axis.weights)
    n = table.shape[0]
    return max(n * float(pairs) / whole - 1, 0.0) / (n - 1) if n > 1 and whole > 0 else 1.0


def _of_softmax(field: Sum) -> Responses | None:
    """Of p − y, y known: by how much its table differs where the squares of the logits are 2 % larger.

    It is summed over all but the classes.
    """
    found = [
        (part, atom)
        for _, part in field.terms
        if isinstance(part, Expression)
        for atom in part.atoms
        if isinstance(atom, Softmax) and atom.g is None
    ]
    if len(found) != 1 or not field.cotangent:
        return None
    (part, p), passed = found[0], inherited(found[0][1].x)
    if passed.nothing:
        return NOTHING
    places = [dim for dim in range(len(field.shape)) if dim != p.dim]
    levels = []
    for scale in (0.99, 1.01):
        other = Softmax(Leaf(p.x.table.scaled(math.sqrt(scale))), p.dim)
        terms = [
            Term(term.factor, tuple((other if atom is p else atom, f) for atom, f in term.functions))
            for term in part.terms
        ]
        swapped = Expression(part.shape, terms)
        table = Sum(field.shape, [(c, swapped if x is part else x) for c, x in field.terms]).table
        levels.append([table.mean_square, table.summed(places).mean_square])
    if not np.min(levels) > 0:
        return NOTHING
    square, whole = np.diff(np.log(levels), axis=0)[0] / math.log(1.01 / 0.99)
    return Responses(_in_part(passed.square, float(square)), _in_part(passed.sum, float(whole)))


def _in_part(passed: Response, exponent: float) -> Response:
    """Of q₀ + q₁ S, which has that exponent; beyond [0, 1], of a power of S."""
    if not 0 < exponent < 1:
        return passed.times(exponent)
    return mixed([exponent, 1 - exponent], [passed, NONE])
