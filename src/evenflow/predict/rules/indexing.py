"""Embeddings, gathers and masks by known indices.

The indices are known, the entries random. Two looked-up rows are one and the same
with the frequency f at which the actual indices coincide, for each class of
positions:  K = f K(agree) + (1 − f) K(differ). The backward op scatters, and is
the transpose of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evenflow.predict.axes import Array, plain
from evenflow.predict.fields import Field, Leaf, Made
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.rules.tied import note_lookup
from evenflow.predict.table import Dims, Table, measured

_coincidences: dict[bytes, tuple[Array, Array]] = {}

HUGE = 1e4
"""Numbers beyond stand for infinity."""


def coincidences(index: torch.Tensor) -> tuple[Array, Array]:
    """Pairs of positions that hold equal indices, and all pairs, by pattern of agreeing axes.

    Axes of size 1 are left out; both arrays have shape (2, …).
    """
    values = index.cpu().numpy()
    name = values.tobytes() + str(values.shape).encode()
    if name not in _coincidences:
        _coincidences[name] = _count(values)
    return _coincidences[name]


def _count(values: np.ndarray) -> tuple[Array, Array]:
    values = values.reshape([n for n in values.shape if n > 1])
    rank = values.ndim
    equal, pairs = np.zeros((2,) * rank), np.zeros((2,) * rank)
    for pattern in np.ndindex(*equal.shape):
        kept = [axis for axis in range(rank) if pattern[axis]]
        free = [axis for axis in range(rank) if not pattern[axis]]
        rows = values.transpose(kept + free).reshape(
            int(np.prod([values.shape[a] for a in kept], initial=1)), -1
        )
        _, codes = np.unique(rows, return_inverse=True)
        codes = codes.reshape(rows.shape) + np.arange(len(rows))[:, None] * (codes.max() + 1)
        counts = np.unique(codes, return_counts=True)[1].astype(float)
        equal[pattern], pairs[pattern] = (counts**2).sum(), rows.size * rows.shape[1]
    for axis in range(rank):  # "all" → "differ"
        for table in (equal, pairs):
            both, agree = np.take(table, 0, axis), np.take(table, 1, axis)
            table[...] = np.stack([both - agree, agree], axis)
    return equal, pairs


def gathered(x: Field, index: torch.Tensor, shape: Sequence[int], *, alike: bool = False) -> Made:
    """``x[index]`` along the first dimension; ``alike`` as if all indices were equal."""
    equal, pairs = coincidences(index)
    share = np.divide(equal, pairs, out=np.zeros_like(equal), where=pairs > 0)
    share = np.ones_like(share) if alike else share
    index_dims: Dims = tuple((plain(n),) if n > 1 else () for n in index.shape)

    def of_table(table: Table) -> Table:
        table = table.exchangeable(0)
        mean = table.mean
        if not table.dims[0]:
            differ = agree = table.second
        else:
            differ, agree = table.second[0], table.second[1]
            mean = None if mean is None else mean[0]
        second = np.multiply.outer(share, agree) + np.multiply.outer(1 - share, differ)
        if mean is not None:
            mean = np.broadcast_to(mean, (1,) * share.ndim + mean.shape)
        return Table((*index_dims, *table.dims[1:]), second, mean).limited()

    return Made(shape, (x,), of_table, ("gather", index.cpu().numpy().tobytes(), tuple(shape), alike))


def scattered(g: Field, index: torch.Tensor, shape: Sequence[int]) -> Made:
    """Rows of ``g`` added up at the rows of the output that ``index`` names."""
    rows, positions = shape[0], range(index.ndim)

    def of_table(table: Table) -> Table:
        for dim in positions:
            for at, axis in enumerate(table.dims[dim]):
                table = table.regroup(dim, at, plain(axis.n))
        # Positions by the axes of g: of all queries and keys some queries agree, or keys.
        axes_of = [table.dims[dim] or (plain(index.shape[dim]),) for dim in positions]
        equal, pairs = coincidences(index.reshape([axis.n for each in axes_of for axis in each]))
        second, at = table.second, 0
        for dim in positions:
            if index.shape[dim] > 1:
                if not table.dims[dim]:
                    second = np.stack([second, second], at)
                at += len(axes_of[dim])
        over = (list(range(equal.ndim)), list(range(equal.ndim)))
        agree = np.tensordot(equal, second, over) / rows
        differ = np.tensordot(pairs - equal, second, over) / (rows * max(rows - 1.0, 1.0))
        rest = table.dims[index.ndim :]
        mean = (
            None
            if table.mean is None
            else np.take(table.mean.reshape(-1, *[a.segments for d in rest for a in d]), 0, 0)
            * index.numel()
            / rows
        )
        if rows == 1:
            return Table(((), *rest), agree, mean)
        return Table(((plain(rows),), *rest), np.stack([differ, agree]), None if mean is None else mean[None])

    return Made(shape, (g,), of_table, ("scatter", index.cpu().numpy().tobytes(), tuple(shape)))


def known_values(index: Field) -> torch.Tensor:
    """The entries of indices or of a mask."""
    if not isinstance(index, Leaf) or index.values is None:
        raise NoRuleError("indices or a mask that are not known")
    return index.values


@rule("embedding")
def embedding(context: Context, output: Any, weight: Field, index: Field, *args: Any) -> Field:
    """Rows of a table."""
    rows = gathered(weight, known_values(index), output.shape)
    note_lookup(context, weight, known_values(index), rows)
    return rows


@rule("embedding_dense_backward")
def embedding_backward(
    context: Context, output: Any, g: Field, index: Field, rows: int, padding: int, *args: Any
) -> Field:
    """Cotangents added up by row."""
    from evenflow.predict.rules.coincident import by_tokens

    values = known_values(index)
    return by_tokens(context, values, scattered(g, values, output.shape))


@rule("index_select")
def index_select(context: Context, output: Any, x: Field, dim: int, index: Field) -> Field:
    """Rows along a dimension."""
    from evenflow.predict.rules.views import permute

    order = [dim, *(d for d in range(len(x.shape)) if d != dim)]
    moved = permute(context, None, x, order)
    rows: Field = gathered(moved, known_values(index), (output.shape[dim], *moved.shape[1:]))
    return permute(context, None, rows, [order.index(d) for d in range(len(order))])


@rule("index")
def index(context: Context, output: Any, x: Field, indices: Sequence[Field | None]) -> Field:
    """``x[indices]`` where one dimension is indexed, or several with all rows alike."""
    from evenflow.predict.rules.views import permute

    used = [d for d, i in enumerate(indices) if i is not None]
    if len(used) == 1:
        dim = used[0]
        values = known_values(indices[dim])  # type: ignore[arg-type]
        if values.dtype == torch.bool:
            if values.ndim != 1:
                raise NoRuleError("a boolean mask of several dimensions")
            values = values.nonzero()[:, 0]
        order = [dim, *(d for d in range(len(x.shape)) if d != dim)]
        rows: Field = gathered(
            permute(context, None, x, order), values, (*values.shape, *(x.shape[d] for d in order[1:]))
        )
        n = values.ndim
        back = [*range(n, n + dim), *range(n), *range(n + dim, len(rows.shape))]
        return permute(context, None, rows, back)
    if len(used) == 2 and used == [0, 1]:
        first, second = (known_values(indices[d]) for d in used)  # type: ignore[arg-type]
        first, second = torch.broadcast_tensors(first, second)
        from evenflow.predict.rules.views import view

        flat = view(context, None, x, (x.shape[0] * x.shape[1], *x.shape[2:]))
        return gathered(flat, first * x.shape[1] + second, output.shape)
    raise NoRuleError("several dimensions indexed at once")


@rule("_unsafe_index")
def unsafe_index(context: Context, output: Any, x: Field, indices: Any) -> Field:
    """As ``index``."""
    return index(context, output, x, indices)


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(
    context: Context,
    output: Any,
    x: Field,
    indices: Sequence[Field | None],
    values: Field,
    accumulate: bool = False,
    *args: Any,
) -> Field:
    """``x[indices] += values``."""
    from evenflow.predict.rules.views import permute, view

    used = [d for d, i in enumerate(indices) if i is not None]
    if not accumulate:
        raise NoRuleError("entries overwritten by index")
    if len(used) == 1:
        dim = used[0]
        at = known_values(indices[dim])  # type: ignore[arg-type]
        n = at.ndim
        front = [*range(dim, dim + n), *range(dim), *range(dim + n, len(values.shape))]
        order = [dim, *(d for d in range(len(x.shape)) if d != dim)]
        added: Field = scattered(permute(context, None, values, front), at, [x.shape[d] for d in order])
        added = permute(context, None, added, [order.index(d) for d in range(len(order))])
    elif used == [0, 1]:
        first, second = torch.broadcast_tensors(*(known_values(indices[d]) for d in used))  # type: ignore[arg-type]
        flat = (x.shape[0] * x.shape[1], *x.shape[2:])
        added = view(context, None, scattered(values, first * x.shape[1] + second, flat), x.shape)
    else:
        raise NoRuleError("several dimensions indexed at once")
    return apply(None, "add", [x, added], {}, x.shape)  # type: ignore[arg-type]


@rule("index_add")
def index_add(
    context: Context, output: Any, x: Field, dim: int, index: Field, source: Field, *, alpha: float = 1
) -> Field:
    """X plus rows sent to known indices along a dimension."""
    from evenflow.predict.rules.views import permute

    order = [dim, *(d for d in range(len(x.shape)) if d != dim)]
    sent: Field = scattered(
        permute(context, None, source, order), known_values(index), [x.shape[d] for d in order]
    )
    sent = permute(context, None, sent, [order.index(d) for d in range(len(order))])
    return apply(None, "add", [x, sent], {"alpha": alpha}, x.shape)  # type: ignore[arg-type]


def chosen(shape: Sequence[int], holds: torch.Tensor, yes: Any, no: Any) -> Field:
    """One where a known mask holds, the other elsewhere; −∞ in scores hides keys from the softmax."""
    for kept, other, value in ((holds, no, yes), (~holds, yes, no)):
        # ``value`` stands where ``kept``, ``other`` elsewhere
        if isinstance(other, (int, float)) or (isinstance(other, Leaf) and not other.tags):
            number = (
                float(other)
                if isinstance(other, (int, float))
                else float(
                    other.table.average if other.values is None or other.values.numel() != 1 else other.values
                )
            )
            if number < -HUGE and isinstance(value, Field):
                return with_mask(value, kept, shape, number)
    yes_part = product(shape, Leaf(measured(holds), holds), yes)
    no_part = product(shape, Leaf(measured(~holds), ~holds), no)
    return apply(None, "add", [yes_part, no_part], {}, shape)  # type: ignore[arg-type]


def with_mask(x: Field, keep: torch.Tensor, shape: Sequence[int], hidden: float) -> Field:
    """Scores of which only some count, with ``hidden`` at the others; the field itself is unchanged."""
    masked = Made(shape, (x,), lambda t: t, ("masked", tuple(shape)))
    masked.keep = keep if x.keep is None else keep & x.keep
    masked.hidden = hidden
    return masked
