"""What is divided by its own root mean square, and the cotangent of such a thing.

Over the n entries of the normalised dimensions S, with x̃ the centred tensor (x
itself for RMS norms) and v̂ = mean_S x̃² + ε, whose mean is V,

    x̂ = x̃/√v̂.

The norm sees the v̂ of the sample (group, channel), not its mean, and where few
numbers make most of v̂, as the channel means of strongly correlated pixels do,
x̂ is less correlated than x. To second order in v̂ − V, for Gaussian x,

    E x̂ x̂' = (1/√VV') [K (1 + ¾ w + ¾ w' + ½ w°) − P − P'],

    w = mean_kl K_kl²/V² (l, k in the set S of i; w' in that of j; w° one in each, over VV'),
    P_ij = mean_k K_ik K_kj/V (k in the set of i), P'_ij likewise (k in the set of j).

Within one set these average to E x̂² = 1, as they must.

Backward, with ĝ = γ g and c = mean_S ĝ x̂:  g_x = (ĝ − mean_S ĝ − x̂ c)/√v̂, hence

    K_gx = [K̃_ĝ − T − T' − (C − 2 C₀) K_x̂] E 1/√(v̂v̂'),
    T_ij = mean_k K_ĝ,ik K_x̂,kj (k in the set of j),   C = E c c',   C₀ = mean_kl K̃_ĝ K_x̂.

C = C₀ where ĝ does not depend on x̂. Where ĝ = h f(x̂), as behind a norm with an
activation, C knows it, and so does T: by Stein's lemma E ĝ_i c' x̂_j has the part
(C − C₀) K_x̂ besides T_ij where f(u)·u has the slope f(u), as for rectifiers; for
others that is an approximation, under which g_x still is orthogonal to x̂.

The last factor is ν/(ν − 2), 1/ν = w, within one set: what a scaled χ² with ν degrees
of freedom gives, and what makes deep BatchNorm nets explode by (B − 2)/(B − 3) and
not by 1 per layer. Between sets it has the exponent ¾ + ¼ w°/w.

References:
    Yang et al., "A Mean Field Theory of Batch Normalization", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np

from evenflow.predict.axes import Array, Indices, along, plain, weighted
from evenflow.predict.axes import regroup as regrouping
from evenflow.predict.combine import align
from evenflow.predict.expressions import Expression
from evenflow.predict.fields import Field, Made, cross
from evenflow.predict.lazy import cached_property
from evenflow.predict.table import Dims, Table


@final
class Normalised(Field):
    """x̂.

    Args:
        x: What is normalised.
        over: The dimensions S.
        eps: Added to the variance.
        centring: Whether the mean is subtracted.
    """

    def __init__(self, x: Field, over: Sequence[int], eps: float, *, centring: bool = True) -> None:
        super().__init__(x.shape)
        self.x, self.over, self.eps, self.centring = x, tuple(over), eps, centring

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.x.tags

    def centred(self, table: Table) -> Table:
        """K̃."""
        return table.centred_over(self.over) if self.centring else table

    @cached_property
    def variance(self) -> Array:
        """V by segments, of size 1 along S."""
        return self.variance_of(self.centred(self.x.table))

    def variance_of(self, centred: Table) -> Array:
        """V from K̃ on any axes."""
        return np.maximum(centred.averaged_over(self.over, centred.diagonal), 0.0) + self.eps

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        table = self.centred(self.x.table)
        std = np.broadcast_to(np.sqrt(self.variance), table.diagonal.shape)
        return Table(table.dims, self._divided(table, table, self, table), table.means / std)

    def cross(self, other: Normalised) -> Table | None:
        """E x̂_i ŷ_j."""
        if (self.over, self.eps, self.centring) != (other.over, other.eps, other.centring):
            return None
        pair = cross(self.x, other.x)
        if pair is None:
            return None
        dims, (pair, mine, theirs) = align([pair, self.x.table, other.x.table], self.shape)
        pair = self.centred(Table(dims, pair.second, None))
        return Table(dims, self._divided(pair, self.centred(mine), other, other.centred(theirs)), None)

    def _divided(self, pair: Table, mine: Table, other: Normalised, theirs: Table) -> Array:
        """E x_i y_j/(σ̂_i σ̂_j), from K̃ of the pair and of both."""
        sets = Sets(pair.dims, self.over)
        left, right = self.variance_of(mine), other.variance_of(theirs)
        left, right = sets.at_first(left), sets.at_second(right)
        between, own, others = (sets.coarse(table.second) for table in (pair, mine, theirs))
        own, others = sets.within_first(own), sets.within_second(others)
        p, q = sets.composed(own, between) / left, sets.composed(between, others) / right
        w, w_other = sets.average(own**2) / left**2, sets.average(others**2) / right**2
        both = sets.average(between**2) / (left * right)
        factor = 1 + 0.75 * w + 0.75 * w_other + 0.5 * both
        result: Array = (pair.second * factor - sets.fine(p + q)) / np.sqrt(left * right)
        return result

    def cross_through(self, other: Field) -> Table | None:
        """E x̂_i y_j with a field that is no norm: that of x, centred and divided by σ of the mean."""
        pair = cross(self.x, other)
        return None if pair is None else self.divided(self.centred_first(pair))

    def centred_first(self, pair: Table) -> Table:
        """E (x_i − x̄) y_j."""
        return pair.centred_over_first(self.over) if self.centring else pair

    def divided(self, pair: Table) -> Table:
        """E x_i y_j / σ_i."""
        dims, (pair, mine) = align([pair, self.x.table], self.shape)
        centred = self.centred(mine)
        std = np.broadcast_to(np.sqrt(self.variance_of(centred)), centred.diagonal.shape)
        return Table(dims, pair.second / pair.sides(std)[0], None)

    @cached_property
    def spread(self) -> float:
        """E[1/v̂] E[v̂] = ν/(ν − 2)."""
        table = self.centred(self.x.table)
        full = float(table.mean_square)
        if full <= 0:
            return 1.0
        squared = Table(table.dims, (table.second / full) ** 2, None)
        inverse = pair_average(squared, self.over)
        return 1 / (1 - 2 * inverse) if inverse < 0.25 else 2.0


def pair_average(table: Table, over: Sequence[int]) -> float:
    """Average over all pairs of entries in some dimensions, of the same entries in the others."""
    values = table.second
    axes_of = table.axes
    inside = {table.first_axis(dim) + k for dim in over for k in range(len(table.dims[dim]))}
    for at in reversed(range(len(axes_of))):
        axis = axes_of[at]
        if at in inside:
            weight = axis.shares
        else:
            weight = np.zeros(axis.classes)
            weight[axis.agree] = axis.weights
        values = weighted(values, at, weight)
    return float(values)


@final
class NormCotangent(Field):
    """The cotangent of x from that of x̂.

    Args:
        g: ĝ, the cotangent of x̂.
        normalised: x̂.
        along: ĝ x̂, entry by entry, if ĝ depends on x̂.
    """

    def __init__(self, g: Field, normalised: Normalised, along: Field | None = None) -> None:
        super().__init__(g.shape, cotangent=True)
        self.g, self.normalised = g, normalised
        over = normalised.over
        self.sum_along = (
            None
            if along is None
            else Made(
                [1 if d in over else n for d, n in enumerate(g.shape)],
                (along,),
                lambda t: t.summed(over, keep=True),
                ("sum", over, True),
            )
        )
        self.spread_from, self.scaled_by = (g,), normalised.x

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.g.tags

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        along = None if self.sum_along is None else self.sum_along.table
        return self._of(self.g.table, self.normalised.table, self.normalised, along)

    def cross(self, other: NormCotangent) -> Table | None:
        """E of two such."""
        g = cross(self.g, other.g)
        if g is None or self.normalised.over != other.normalised.over:
            return None
        x = cross(self.normalised, other.normalised)
        if x is None:
            return None
        along = None
        if self.sum_along is not None and other.sum_along is not None:
            along = cross(self.sum_along, other.sum_along)
        return self._of(g, x, other.normalised, along)

    def cross_through(self, other: Field) -> Table | None:
        """E g_x,i h_j with a cotangent of another kind, without the part along x̂: it is one of n."""
        pair = cross(self.g, other)
        return None if pair is None else self.normalised.divided(self.normalised.centred_first(pair))

    def _of(self, g: Table, x: Table, other: Normalised, along: Table | None) -> Table:
        mine = self.normalised
        tables = [g, x, mine.x.table, other.x.table, mine.table, other.table]
        dims, aligned = align(tables if along is None else [*tables, along], self.shape)
        g, x, table, table_other, own, others = aligned[:6]
        g = Table(dims, g.second, None)
        g = g.centred_over(mine.over) if mine.centring else g
        sets = Sets(dims, mine.over)
        coarse, hat = sets.coarse(g.second), sets.coarse(x.second)
        left = sets.composed(sets.within_first(sets.coarse(own.second)), coarse)
        right = sets.composed(coarse, sets.within_second(sets.coarse(others.second)))
        independent = sets.average(coarse * hat)
        projected = independent
        if along is not None:
            projected = sets.average(sets.coarse(aligned[6].second)) / sets.n**2
        second = g.second - sets.fine(left + right) - (projected - 2 * independent) * x.second
        v, v_other = mine.variance_of(mine.centred(table)), other.variance_of(other.centred(table_other))
        scale = np.sqrt(sets.at_first(v) * sets.at_second(v_other))
        return Table(dims, second / scale * self._inverse(other, sets, x), np.zeros_like(table.means))

    def _inverse(self, other: Normalised, sets: Sets, x: Table) -> Array:
        """E[1/√(v̂ v̂')] √(V V')."""
        own = math.sqrt(self.normalised.spread * other.spread)
        weight = 1 - 1 / own  # 2/ν
        if weight <= 0:
            return np.ones(())
        shared = np.minimum(2 * sets.average(sets.coarse(x.second) ** 2) / weight, 1.0)
        factor: Array = own ** (0.75 + 0.25 * shared)
        return factor


def depends(g: Field, x: Field) -> bool:
    """Whether a cotangent has a factor that is a function of what x was made from."""
    return isinstance(g, Expression) and any(not atom.cotangent and atom.tags & x.tags for atom in g.atoms)


@final
class Sets:
    """Pair classes of sets S: along the axes inside a set, and outside them, where the sets lie.

    Args:
        dims: Axes of each dimension.
        over: The dimensions along which a set extends.
    """

    def __init__(self, dims: Dims, over: Sequence[int]) -> None:
        at = 0
        self.inside: list[int] = []
        for dim, axes_of in enumerate(dims):
            if dim in over:
                self.inside += range(at, at + len(axes_of))
            at += len(axes_of)
        self.axes = tuple(axis for axes_of in dims for axis in axes_of)
        self.n = math.prod(self.axes[at].n for at in self.inside)

    def coarse(self, values: Array) -> Array:
        """By pair classes, those inside averaged to differ and agree."""
        for at in self.inside:
            axis = self.axes[at]
            if axis.segments > 1:
                values = along(values, at, regrouping(axis, plain(axis.n))[0])
        return values

    def fine(self, values: Array) -> Array:
        """From differ and agree back to pair classes."""
        for at in self.inside:
            axis = self.axes[at]
            if axis.segments > 1 and values.shape[at] > 1:
                values = along(values, at, regrouping(plain(axis.n), axis)[0])
        return values

    def within_first(self, values: Array) -> Array:
        """By pair classes, of pairs within the set of the first entry."""
        return self._within(values, [axis.left for axis in self.axes])

    def within_second(self, values: Array) -> Array:
        """By pair classes, of pairs within the set of the second entry."""
        return self._within(values, [axis.right for axis in self.axes])

    def _within(self, values: Array, side: Sequence[Indices]) -> Array:
        for at, axis in enumerate(self.axes):
            if at not in self.inside:
                values = np.take(values, axis.segments**2 + side[at], at)
        return values

    def at_first(self, by_segment: Array) -> Array:
        """A number of each set, at the first entry."""
        return by_segment[np.ix_(*(self._side(at, axis.left) for at, axis in enumerate(self.axes)))]

    def at_second(self, by_segment: Array) -> Array:
        """A number of each set, at the second entry."""
        return by_segment[np.ix_(*(self._side(at, axis.right) for at, axis in enumerate(self.axes)))]

    def _side(self, at: int, side: Indices) -> Indices:
        return np.zeros(1, dtype=np.intp) if at in self.inside else side

    def average(self, values: Array) -> Array:
        """The mean over pairs of entries of both sets, of size 1 inside."""
        for at in self.inside:
            n = self.axes[at].n
            values = along(values, at, np.array([[1 - 1 / n, 1 / n]]))
        return values

    def composed(self, a: Array, b: Array) -> Array:
        """mean_k a_ik b_kj, k over a set: on the modes of exchangeable axes a product.

        They are the mean, K₁ + (n − 1) K₀, and what differs from it, K₁ − K₀.
        """
        for at in self.inside:
            n = self.axes[at].n
            modes = np.array([[n - 1.0, 1.0], [-1.0, 1.0]])
            a, b = along(a, at, modes), along(b, at, modes)
        product = a * b / self.n
        for at in self.inside:
            n = self.axes[at].n
            product = along(product, at, np.array([[1.0, -1.0], [1.0, n - 1.0]]) / n)
        return product
