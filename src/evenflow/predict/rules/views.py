"""Ops that rearrange, repeat, cut and join entries.

A view of an expression is the expression of the views, so that what a cotangent
remembers of an activation survives reshaping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from evenflow.predict.axes import plain
from evenflow.predict.expressions import Expression, Term
from evenflow.predict.fields import Field, Leaf, Made
from evenflow.predict.rules.registry import Context, NoRuleError, rule
from evenflow.predict.table import Table


def rearranged(
    context: Context,
    x: Field,
    shape: Sequence[int],
    of_table: Callable[[Table], Table],
    key: Hashable,
    of_values: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Field:
    """Apply a rearrangement to a field, or to the fields inside an expression."""
    shape = tuple(int(n) for n in shape)
    found = context.made.get((id(x), key))
    if found is not None:
        known: Field = found[1]
        return known
    if isinstance(x, Made) and _undone(x.key, key, x.parts[0].shape, shape):
        return x.parts[0]
    if isinstance(x, Expression) and x.atoms and all(atom.shape == x.shape for atom in x.atoms):
        moved = {atom: rearranged(context, atom, shape, of_table, key, of_values) for atom in x.atoms}
        terms = [Term(t.factor, tuple((moved[field], f) for field, f in t.functions)) for t in x.terms]
        expression = Expression(shape, terms)
        expression.permuted = x if key[0] == "permute" else None  # type: ignore[index]
        result: Field = expression
    elif isinstance(x, Leaf) and x.values is not None and of_values is not None:
        result = Leaf(of_table(x.table), of_values(x.values), orthogonal=x.orthogonal, cotangent=x.cotangent)
    else:
        result = Made(shape, (x,), of_table, key)
    if x.keep is not None and of_values is not None and tuple(x.keep.shape) == x.shape:
        result.keep, result.hidden = of_values(x.keep), x.hidden
    elif x.keep is not None and x.shape[-2:] == shape[-2:]:
        result.keep, result.hidden = x.keep, x.hidden
    context.made[id(x), key] = (x, result)
    return result


def _undone(before: Any, key: Any, source: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a rearrangement takes back the one before."""
    if before[0] != key[0] or tuple(source) != tuple(shape):
        return False
    if key[0] == "permute":
        return [before[1][d] for d in key[1]] == list(range(len(shape)))
    return bool(key[0] == "view")


@rule("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "_reshape_alias", "flatten")
def view(context: Context, output: Any, x: Field, *args: Any) -> Field:
    """Same entries in the same order."""
    shape = tuple(args[0] if output is None else output.shape)
    if shape == x.shape:
        return x
    return rearranged(
        context, x, shape, lambda t: t.viewed(shape), ("view", shape), lambda v: v.reshape(shape)
    )


@rule(
    "clone",
    "alias",
    "detach",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "lift_fresh_copy",
    "positive",
    "view_as_real_copy",
)
def same(context: Context, output: Any, x: Field, *args: Any, **options: Any) -> Field:
    """The same entries."""
    return x


@rule("copy")
def copy(context: Context, output: Any, x: Field | None, source: Field, *args: Any) -> Field:
    """X is overwritten."""
    return source if source.shape == tuple(output.shape) else expand(context, output, source)


@rule("permute")
def permute(context: Context, output: Any, x: Field, order: Sequence[int]) -> Field:
    """Dimensions in another order."""
    order = tuple(int(d) % len(x.shape) for d in order)
    if order == tuple(range(len(order))):
        return x
    shape = [x.shape[d] for d in order]
    return rearranged(
        context, x, shape, lambda t: t.permuted(order), ("permute", order), lambda v: v.permute(order)
    )


@rule("t")
def t(context: Context, output: Any, x: Field) -> Field:
    """Transposed matrix."""
    return permute(context, output, x, range(len(x.shape))[::-1])


@rule("transpose")
def transpose(context: Context, output: Any, x: Field, first: int, second: int) -> Field:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return permute(context, output, x, order)


@rule("expand")
def expand(context: Context, output: Any, x: Field, *args: Any, **options: Any) -> Field:
    """Repeated along new dimensions without copying."""
    shape = tuple(output.shape)
    if shape == x.shape:
        return x
    return rearranged(
        context, x, shape, lambda t: t.expanded(shape), ("expand", shape), lambda v: v.expand(shape)
    )


@rule("repeat")
def repeat(context: Context, output: Any, x: Field, times: Sequence[int]) -> Field:
    """Copies side by side."""
    source = (1,) * (len(times) - len(x.shape)) + x.shape
    split = [n for k, size in zip(times, source, strict=True) for n in (k, size)]
    spread = view(context, None, x, [n for size in source for n in (1, size)])
    spread = rearranged(
        context,
        spread,
        split,
        lambda table: table.expanded(split),
        ("expand", tuple(split)),
        lambda v: v.expand(split),
    )
    return view(context, output, spread)


@rule("as_strided")
def as_strided(
    context: Context,
    output: Any,
    x: Field,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int | None = None,
    *,
    source: tuple[tuple[int, ...], int],
) -> Field:
    """Memory read in another order: every entry of x once, or a slice of it.

    Args:
        context: As for every rule.
        output: As for every rule.
        x: What the memory holds.
        shape: Of the output.
        strides: Of the output.
        offset: Where it starts; where x starts for None.
        source: Strides of x, and where it starts.
    """
    part = _sliced(x.shape, *source, shape, strides, offset)
    if part is not None:
        for dim, (start, size) in enumerate(part):
            x = cut(context, x, dim, start, start + size)
        return view(context, None, x, tuple(shape))
    before, now = _memory_order(x.shape, source[0]), _memory_order(shape, strides)
    if (
        before is None
        or now is None
        or offset not in (None, source[1])
        or math.prod(shape) != math.prod(x.shape)
    ):
        raise NoRuleError("strides that repeat or leave out entries")
    inverse = [now.index(d) for d in range(len(now))]
    return permute(
        context,
        None,
        view(context, None, permute(context, None, x, before), [shape[d] for d in now]),
        inverse,
    )


def _sliced(
    whole: Sequence[int],
    whole_strides: Sequence[int],
    whole_offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int | None,
) -> list[tuple[int, int]] | None:
    """Where a slice of memory starts in each dimension, and its size there; None if it is no slice.

    Dimensions of size 1 may have gone.
    """
    left = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    beyond = 0 if offset is None else offset - whole_offset
    found = []
    for n, stride in zip(whole, whole_strides, strict=True):
        size = left.pop(0)[0] if left and left[0][1] == stride and left[0][0] <= n else 1
        found.append((0, size))
    if left or list(whole_strides) != sorted(whole_strides, reverse=True) or beyond < 0:
        return None
    for dim, stride in enumerate(whole_strides):
        start = beyond // stride if stride else 0
        beyond -= start * stride
        found[dim] = start, found[dim][1]
        if start + found[dim][1] > whole[dim]:
            return None
    return None if beyond or math.prod(shape) == math.prod(whole) else found


def _memory_order(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """Dimensions from the outermost in memory to the innermost; None if it has gaps or overlaps."""
    order = sorted(range(len(shape)), key=lambda d: (shape[d] > 1, -strides[d]))
    expected = 1
    for d in reversed(order):
        if shape[d] > 1 and strides[d] != expected:
            return None
        expected *= shape[d]
    return order


# Cutting


def cut(context: Context, x: Field, dim: int, start: int, stop: int, step: int = 1) -> Field:
    """``x[start:stop:step]`` along one dimension."""
    dim %= len(x.shape)
    size = len(range(start, stop, step))
    if size == x.shape[dim]:
        return x
    shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
    where = (slice(None),) * dim + (slice(start, stop, step),)
    return rearranged(
        context,
        x,
        shape,
        lambda t: t.sliced(dim, start, stop, step),
        ("slice", dim, start, stop, step),
        lambda v: v[where],
    )


@rule("slice")
def slice_(
    context: Context,
    output: Any,
    x: Field,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Field:
    """``x[start:end:step]``."""
    first, last, step = slice(start, end, step).indices(x.shape[dim])
    return cut(context, x, dim, first, last, step)


@rule("narrow")
def narrow(context: Context, output: Any, x: Field, dim: int, start: int, length: int) -> Field:
    """``x[start:start + length]``."""
    return cut(context, x, dim, start, start + length)


@rule("select")
def select(context: Context, output: Any, x: Field, dim: int, index: int) -> Field:
    """``x[index]``."""
    index %= x.shape[dim]
    return view(context, output, cut(context, x, dim, index, index + 1))


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", "tensor_split")
def split(context: Context, output: Any, x: Field, sizes: Any, dim: int = 0) -> list[Field]:
    """Consecutive parts."""
    parts, start = [], 0
    for part in output:
        length = part.shape[dim]
        parts.append(cut(context, x, dim, start, start + length))
        start += length
    return parts


@rule("unbind")
def unbind(context: Context, output: Any, x: Field, dim: int = 0) -> list[Field]:
    """All ``x[index]``."""
    return [select(context, part, x, dim, index) for index, part in enumerate(output)]


@rule("diagonal")
def diagonal(context: Context, output: Any, x: Field, *args: Any) -> Field:
    """Entries of a matrix whose indices agree; only for exchangeable entries."""
    if len(x.shape) != 2:
        raise NoRuleError("a diagonal of more than two dimensions")
    table = x.table.exchangeable(0).exchangeable(1)
    n = output.shape[0]
    second = np.array([table.second[0, 0], table.second[1, 1]])
    return Leaf(Table(((plain(n),),), second, None if table.mean is None else table.mean.reshape(1)))
