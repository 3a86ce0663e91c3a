"""The algebra of responses: how ln S of a tensor follows the samples that it was made from.

    ln S − ln E S ≈ Σ_s a_s ε_s,   Var ε_s = 1,   E ln S − ln E S = shift.

A source s is the sample that the entries of one tensor are, where it enters a product
with weights. A source of variance b moves the shift by −b/2. What a shift is made into:

* by f with E f² = F(q), k = d ln F/d ln q, κ = dk/d ln q: k times it, and κ/2 of the variance
  of ln q. Samples with q of their own, of variance w, have a mean E f² that is
  (k² − k + κ) w/2 above F of their mean (Taylor of F to the second order);
* by a product: their sum, and the covariance of the factors over samples;
* by a sum Σ_i S_i: its terms' by their shares, and half of the variance that it lacks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

from evenflow.predict import coefficients, reuse
from evenflow.predict.coefficients import Coefficients
from evenflow.predict.fields import Field, Made


class Moments(NamedTuple):
    """Of ln S, without the sources.

    Attributes:
        variance: Of ln S.
        shift: E ln S − ln E S.
    """

    variance: float
    shift: float


@final
class Response:
    """How ln S of one tensor responds to the sources.

    Attributes:
        to: a, by source; sources beyond its end have no effect.
        shift: E ln S − ln E S, −½ per unit of variance where a source comes in.
    """

    __slots__ = ("_variance", "shift", "to")

    def __init__(self, to: Coefficients, shift: float, variance: float | None = None) -> None:
        self.to = to
        self.shift = shift
        self._variance = variance

    def times(self, factor: float) -> Response:
        """Of S^factor."""
        if factor == 1.0:
            return self
        variance = None if self._variance is None else self._variance * factor**2
        return Response(self.to.times(factor), self.shift * factor, variance)

    def moved(self, shift: float) -> Response:
        """With its mean elsewhere."""
        return Response(self.to, self.shift + shift, self._variance) if shift else self

    @property
    def variance(self) -> float:
        """Σ a²."""
        if self._variance is None:
            self._variance = self.to.dot(self.to)
        return self._variance


NONE = Response(Coefficients.of([]), 0.0, 0.0)


class Responses(NamedTuple):
    """Of the mean square, and of the mean square of the sum over samples and places.

    Attributes:
        overlap: v, the mean squared cosine of two samples beyond that of the table.
        apart: How ln S of one sample responds beyond that of the mean over samples.
    """

    square: Response
    sum: Response
    overlap: float = 0.0
    apart: Response = NONE

    @property
    def nothing(self) -> bool:
        """Whether there is no response."""
        return not (self.square.to.size or self.sum.to.size or self.overlap)


NOTHING = Responses(NONE, NONE)


def with_source(passed: Response, field: Field, variance: float) -> Response:
    """With a source of that variance, the entries of a tensor."""
    if not variance > 0:
        return passed
    memory = root(field).__dict__
    if "_source" not in memory:
        memory["_source"] = next(reuse.once("sources", itertools.count))
    at, deviation = memory["_source"], math.sqrt(variance)
    moments = moments_with_source(passed, field, variance)
    return Response(passed.to.plus(deviation, at), moments.shift, moments.variance)


def moments_with_source(passed: Response, field: Field, variance: float) -> Moments:
    """Of :func:`with_source`; a tensor that has entered no product needs no number for that."""
    if not variance > 0:
        return Moments(passed.variance, passed.shift)
    at, deviation = root(field).__dict__.get("_source"), math.sqrt(variance)
    before = 0.0 if at is None else passed.to[at]
    return Moments(passed.variance + (2 * before + deviation) * deviation, passed.shift - variance / 2)


def added(parts: Iterable[Response]) -> Response:
    """Of the product of some S."""
    found = [part for part in parts if part.to.size]
    if len(found) <= 1:
        return found[0] if found else NONE
    return Response(coefficients.added([part.to for part in found]), sum(part.shift for part in found))


def of_factors(parts: Sequence[Responses]) -> tuple[Response, Response]:
    """The mean squares of :func:`of_product` alone."""
    if len(parts) == 1:
        return parts[0].square, parts[0].sum
    square = added([part.square for part in parts])
    together = sum(a.apart.to.dot(b.apart.to) for a, b in itertools.combinations(parts, 2))
    return square.moved(together), added([part.sum for part in parts])


def of_product(parts: Sequence[Responses]) -> Responses:
    """Of factors that are multiplied entry by entry, or summed over."""
    if len(parts) == 1:
        return parts[0]
    overlap = max(part.overlap for part in parts)
    return Responses(*of_factors(parts), overlap, added([part.apart for part in parts]))


def of_sum(weights: Sequence[float], parts: Sequence[Responses]) -> Responses:
    """Of a sum, by the shares of the mean square."""
    total = sum(weights)
    if not total > 0:
        return NOTHING
    if len(parts) == 1:
        return parts[0]
    shares = [weight / total for weight in weights]
    return Responses(
        mixed(shares, [part.square for part in parts]),
        mixed(shares, [part.sum for part in parts]),
        sum(s * math.sqrt(part.overlap) for s, part in zip(shares, parts, strict=True)) ** 2,
        added([part.apart.times(s) for s, part in zip(shares, parts, strict=True)]),
    )


def mixed(shares: Sequence[float], parts: Sequence[Response]) -> Response:
    """Of Σ_i S_i: E of the logarithm of a sum exceeds that of its terms by half of what variance it lacks."""
    if 1.0 in shares:
        return parts[shares.index(1.0)]
    found = added([part.times(share) for share, part in zip(shares, parts, strict=True)])
    within = sum(share * part.variance for share, part in zip(shares, parts, strict=True))
    return found.moved((within - found.variance) / 2)


def of_function(before: Responses, first: float, second: float) -> Responses:
    """Of f(x), from the derivatives of ln E f² by ln q.

    Where that is curved, E of the logarithm moves by half of the variance of ln q times the second
    one; for samples that differ from each other it is the mean that moves, by E f² as a function of q.
    """
    found = before.square.times(first)
    shift = second * before.square.variance + (first**2 - first + second) * before.apart.variance
    found = found.moved(shift / 2)
    return Responses(found, found, apart=before.apart.times(first))


def root(field: Field) -> Field:
    """What a field is a rearrangement of."""
    while isinstance(field, Made) and len(field.parts) == 1:
        field = field.parts[0]
    return field
