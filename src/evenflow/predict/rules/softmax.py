"""Softmax, masked or not, its logarithm, and the cotangents of both.

Scores s_ij of query i and key j are taken as Gaussian. Only their spread along
the keys matters: D = K(agree) − K(differ) on the key axis, r = e^D = E[e^s e^s']
for agreeing over that for differing keys. Without a mask, over n keys,

    E p_j p'_j = r / (n (r + n − 1)),   E p_j p'_j' = 1 / (n (r + n − 1)),   j ≠ j'.

With a mask, query i sees n_i keys, a_ij = 1/n_i where it sees j, and two queries
share o of them:

    E p_ij p_i'j' = a_ij a_i'j' · (r if j = j' else 1) / (1 + ω (r − 1)),   ω = o / (n_i n_i'),

averaged over the query and key pairs of each class. For large D (r no longer the
right ratio, the largest score wins) r is found from simulated rows.

Backward, g_s = p (g − Σ_k p_k g_k), with g independent of p; the part of it that
a saturated p holds back is simulated too.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from evenflow.predict.axes import Array
from evenflow.predict.combine import align
from evenflow.predict.fields import Field
from evenflow.predict.lazy import cached_property
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.masks import Mask, averages, distinct_masks
from evenflow.predict.rules.peaked import by_count, effective_ratio, log_sum, unsaturated
from evenflow.predict.rules.reductions import summed
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.tied import Own, cotangent, labels_of, none_stands_out, own_of
from evenflow.predict.table import Table


def _prepare(x: Field, dim: int) -> tuple[Table, int, int | None]:
    """Scores with one axis for the keys and one for the queries; the queries' dimension."""
    table = x.table.single(dim)
    query = None
    if x.keep is not None and x.keep.ndim >= 2 and x.keep.shape[-2] > 1:
        if dim != len(x.shape) - 1:
            raise NoRuleError("a mask along a dimension that is not the last")
        query = len(x.shape) - 2
        table = table.single(query)
    return table, dim, query


@final
class Softmax(Field):
    """p = softmax(x) along a dimension; with ``g``, the cotangent of x from that of p.

    Attributes:
        forward: p, also of a cotangent.
    """

    def __init__(self, x: Field, dim: int, g: Field | None = None, p: Softmax | None = None) -> None:
        super().__init__(x.shape, cotangent=g is not None)
        self.x, self.dim, self.g = x, dim % max(len(x.shape), 1), g
        self.forward = self if p is None else p
        self.spread_from = () if g is None else (g,)

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.x.tags if self.g is None else self.g.tags

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        table, dim, query = _prepare(self.x, self.dim)
        if not table.dims[dim]:
            return Table(
                table.dims,
                np.ones_like(table.second) * (self.g is None),
                np.ones_like(table.mean) * (self.g is None),
            )
        if len(masks := distinct_masks(self.x.keep)) == 1:
            return self._masked(table, masks[0][1], dim, query)
        dims, tables = align([self._masked(table, keep, dim, query) for _, keep in masks], self.shape)
        second, mean = (
            sum(share * values for (share, _), values in zip(masks, each, strict=True))
            for each in ([t.second for t in tables], [t.means for t in tables])
        )
        return Table(dims, np.asarray(second), np.asarray(mean))

    def _masked(self, table: Table, keep: torch.Tensor | None, dim: int, query: int | None) -> Table:
        mask = averages(keep, table.dims[query][0] if query is not None else None, table.dims[dim][0])
        table = table.regroup(dim, 0, mask.keys)
        if query is not None and mask.queries is not None:
            table = table.regroup(query, 0, mask.queries)
        g = None
        if self.g is not None:
            dims, (table, g) = align(
                [
                    table,
                    self.g.table.single(dim) if query is None else self.g.table.single(dim).single(query),
                ],
                self.shape,
            )
            if dims[dim][0] != mask.keys or (query is not None and dims[query][0] != mask.queries):
                mask = averages(keep, dims[query][0] if query is not None else None, dims[dim][0])
                table, g = (t.regroup(dim, 0, mask.keys) for t in (table, g))
                if query is not None and mask.queries is not None:
                    table, g = (t.regroup(query, 0, mask.queries) for t in (table, g))
        return self._with(table, mask, dim, query, g)

    def _with(self, table: Table, mask: Mask, dim: int, query: int | None, g: Table | None) -> Table:
        keys, at = mask.keys, table.first_axis(dim)
        S = keys.segments
        second = np.moveaxis(table.second, at, -1)
        differ = second[..., : S * S].reshape(*second.shape[:-1], S, S)
        weight = (keys.counts[: S * S] / max(keys.counts[: S * S].sum(), 1)).reshape(S, S)
        apart = (differ * weight).sum((-1, -2))
        spread = second[..., S * S :] @ keys.weights - apart  # D by the classes of the other axes
        full = max(
            float(
                spread[
                    tuple(slice(a.classes - a.segments, None) for i, a in enumerate(table.axes) if i != at)
                ].max(initial=0.0)
            ),
            0.0,
        )
        q_at = None if query is None else table.first_axis(query) - (table.first_axis(query) > at)
        shape = [1] * spread.ndim
        if q_at is not None:
            shape[q_at] = len(mask.count)

        def by_query(values: Array) -> Array:
            return values.reshape(shape)

        counts = by_query(mask.count)
        ratio = by_count(effective_ratio, counts, full, spread)
        omega = by_query(mask.overlap)
        norm = 1 / (1 + omega * (ratio - 1))
        agree = (ratio * norm)[..., None] * mask.agree.reshape(*shape, S)
        apart_p = norm[..., None, None] * mask.differ.reshape(*shape, S, S)
        mean = np.broadcast_to(0.0, [a.segments for a in table.axes])
        if g is None:
            average = mask.seen / np.array(keys.sizes)  # [S_q, S_k]
            means = [1] * len(table.axes)
            means[at] = S
            if query is not None:
                assert mask.queries is not None
                means[table.first_axis(query)] = mask.queries.segments
                average = average if table.first_axis(query) < at else average.T
            mean = np.broadcast_to(average.reshape(means), [a.segments for a in table.axes])
        else:
            agree = agree * by_count(unsaturated, counts, full, spread)[..., None]
            agree, apart_p = self._cotangent(g, mask, at, shape, agree, apart_p)
        stacked = np.concatenate([apart_p.reshape(*apart_p.shape[:-2], S * S), agree], -1)
        stacked = np.broadcast_to(stacked, (*spread.shape, keys.classes))
        return Table(table.dims, np.moveaxis(stacked, -1, at), mean)

    def _cotangent(
        self, g: Table, mask: Mask, at: int, shape: list[int], agree: Array, differ: Array
    ) -> tuple[Array, Array]:
        """Multiply by E of (g_j − Σ p_k g_k)(g'_j' − Σ p'_k g'_k)."""
        keys = mask.keys
        S = keys.segments
        second = np.moveaxis(g.second, at, -1)
        apart = second[..., : S * S].reshape(*second.shape[:-1], S, S)
        excess = second[..., S * S :] - np.einsum("...ss->...s", apart)  # G(agree) − G(differ), by segment
        left = mask.seen[mask.left].reshape(*shape, S)  # Σ_k∈α a_ik
        right = mask.seen[mask.right].reshape(*shape, S)
        size = np.array(keys.sizes, float)
        mean_left, mean_right = left / size, right / size
        # Σ_k' a'_k' G(j, k') for j in a segment, and the mirror image
        to_right = (
            np.einsum("...ab,...b->...a", apart, np.broadcast_to(right, apart.shape[:-1]))
            + mean_right * excess
        )
        to_left = (
            np.einsum("...ab,...a->...b", apart, np.broadcast_to(left, apart.shape[:-1])) + mean_left * excess
        )
        shared = mask.agree.reshape(*shape, S) * size
        total = np.einsum(
            "...ab,...a,...b->...",
            apart,
            np.broadcast_to(left, apart.shape[:-1]),
            np.broadcast_to(right, apart.shape[:-1]),
        )
        total = total + (shared * excess).sum(-1)
        centred = apart - to_right[..., :, None] - to_left[..., None, :] + total[..., None, None]
        same = np.einsum("...ss->...s", centred) + excess
        p_differ = np.broadcast_to(differ, np.broadcast_shapes(differ.shape, centred.shape))
        agree, differ = agree * same, differ * centred
        counts = keys.counts[: S * S].reshape(S, S)
        plus, minus = (agree * size).sum(-1), (differ * counts).sum((-1, -2))
        # Rows of a softmax cotangent add up to zero.
        with np.errstate(divide="ignore", invalid="ignore"):
            correction = np.where(np.abs(minus) > 1e-12 * np.abs(plus), -plus / minus, 0.0)
            # Where nothing is left to scale it is shared out; a query with one key has no gradient.
            lacking = np.where(correction == 0, -plus / (p_differ * counts).sum((-1, -2)), 0.0)
        alone = ~np.isfinite(lacking)
        shared_out = np.where(alone, 0.0, lacking)[..., None, None] * p_differ
        return np.where(alone[..., None], 0.0, agree), differ * correction[..., None, None] + shared_out


@rule("_softmax", "_safe_softmax", "softmax")
def softmax(context: Context, output: Any, x: Field, dim: int, *args: Any) -> Field:
    """Σ p = 1 along a dimension."""
    return Softmax(x, dim)


@rule("_softmax_backward_data")
def softmax_backward(context: Context, output: Any, g: Field, p: Field, dim: int, *args: Any) -> Field:
    """P (g − Σ p g)."""
    if not isinstance(p, Softmax) or p.g is not None:
        raise NoRuleError("backward of a softmax whose forward pass was not seen")
    chosen = context.made.get(("way back", id(g)))
    if chosen is not None and chosen[1] is p:  # to its largest entries, see routing
        back: Field = chosen[2]
        return back
    return Softmax(p.x, dim, g, p)


@final
class LogSoftmax(Field):
    """log softmax(x): the scores, centred along the keys, less the mean of the log-sum."""

    def __init__(self, x: Field, dim: int, own: Own | None = None) -> None:
        super().__init__(x.shape)
        self.x, self.dim, self.own = x, dim % max(len(x.shape), 1), own

    @cached_property
    def tags(self) -> int:
        """Bit mask of the sources through which it can covary with another field."""
        return self.x.tags

    @cached_property
    def table(self) -> Table:
        """Mean and pair table."""
        table = self.x.table.single(self.dim).centred_over([self.dim])
        n = self.shape[self.dim] if self.shape else 1
        if self.own is not None and self.own.height:
            total = self.own.log_sum()
        else:
            total = log_sum(n, table.mean_square * n / max(n - 1, 1))
        assert table.mean is not None
        mean = table.mean - total
        left, right = table.sides(table.mean)
        return Table(table.dims, table.second - left * right + (left - total) * (right - total), mean)


@rule("_log_softmax", "log_softmax")
def log_softmax(context: Context, output: Any, x: Field, dim: int, *args: Any) -> Field:
    """X − log Σ e^x."""
    last = bool(x.shape) and dim % len(x.shape) == len(x.shape) - 1
    return LogSoftmax(x, dim, own_of(context, x) or none_stands_out(x) if last else None)


@rule("_log_softmax_backward_data")
def log_softmax_backward(context: Context, output: Any, g: Field, y: Field, dim: int, *args: Any) -> Field:
    """G − p Σ g."""
    if not isinstance(y, LogSoftmax):
        raise NoRuleError("backward of a log-softmax whose forward pass was not seen")
    from evenflow.predict.rules.coincident import note_pairs

    labels = labels_of(context, g)
    if y.own is not None and labels is not None and labels[0].numel() == y.own.tokens.numel():
        result = cotangent(context, y.own, *labels, g.shape)
    else:
        p = Softmax(y.x, dim)
        shape = [1 if d == p.dim else n for d, n in enumerate(g.shape)]
        total = summed(context, g, [p.dim], shape, keep=True)
        result = apply(None, "sub", [g, product(g.shape, p, total)], {}, g.shape)  # type: ignore[arg-type]
    if labels is not None:
        note_pairs(context, result, g, *labels[:2])
    return result
