"""Several pair tables together: brought to common axes, and contracted with each other.

Two tensors of one shape may have their dimensions cut into other axes and segments.
Before their tables are added or multiplied, both are brought to axes that each of
them can be cut into; a tensor that is broadcast gets axes along which all entries agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from evenflow.predict import axes
from evenflow.predict.axes import Array, Axis, plain
from evenflow.predict.table import Dims, Table


def common_axes(first: Sequence[Axis], second: Sequence[Axis]) -> tuple[Axis, ...]:
    """The factors of one dimension that both tables can be brought to."""
    if tuple(first) == tuple(second):
        return tuple(first)
    a, b, found = list(first), list(second), []
    while a and b:
        x, y = a.pop(0), b.pop(0)
        if x.n == y.n:
            found.append(axes.joined(x, y))
        elif x.n % y.n == 0:
            found.append(y)
            a.insert(0, plain(x.n // y.n))
        elif y.n % x.n == 0:
            found.append(x)
            b.insert(0, plain(y.n // x.n))
        else:
            return (plain(math.prod(axis.n for axis in first)),)
    return tuple(found)


def retarget(table: Table, dims: Dims) -> Table:
    """Bring the axes of a table to those of ``dims``; a dimension without axes stays as it is."""
    for dim, target in enumerate(dims):
        if not table.dims[dim] or table.dims[dim] == target:
            continue
        if common_axes(table.dims[dim], target) != target and len(table.dims[dim]) != len(target):
            table = table.single(dim)
        for position, axis in enumerate(target):
            source = table.dims[dim][position]
            if source.n != axis.n:
                if source.n % axis.n:
                    table = table.single(dim)
                    source = table.dims[dim][0]
                table = table.split(dim, position, source.n // axis.n)
            table = table.regroup(dim, position, axis)
    return table


def align(tables: Sequence[Table], shape: Sequence[int]) -> tuple[Dims, list[Table]]:
    """Broadcast tables to one shape with the same axes; each result has them all."""
    dims = tables[0].dims
    if len(dims) == len(shape) and all(t.dims == dims for t in tables) and tables[0].shape == tuple(shape):
        return dims, list(tables)
    padded = [replace(t, dims=((),) * (len(shape) - len(t.dims)) + t.dims) for t in tables]
    dims = tuple(_dim_of([t.dims[dim] for t in padded], size) for dim, size in enumerate(shape))
    return dims, [broadcast(retarget(t, dims), dims) for t in padded]


def _dim_of(candidates: Sequence[tuple[Axis, ...]], size: int) -> tuple[Axis, ...]:
    """The axes of one dimension that all tables which have any can be brought to."""
    found: tuple[Axis, ...] = ()
    for axes_of in candidates:
        found = common_axes(found, axes_of) if found and axes_of else found or axes_of
    return found if found or size == 1 else (plain(size),)


def broadcast(table: Table, dims: Dims) -> Table:
    """Add the axes that a table lacks: along them all entries are one and the same."""
    if table.dims == dims:
        return table
    pairs, means, all_pairs, all_means = [], [], [], []
    for have, want in zip(table.dims, dims, strict=True):
        pairs += [axis.classes if have else 1 for axis in want]
        means += [axis.segments if have else 1 for axis in want]
        all_pairs += [axis.classes for axis in want]
        all_means += [axis.segments for axis in want]
    return Table(
        dims,
        np.broadcast_to(table.second.reshape(pairs), all_pairs),
        None if table.mean is None else np.broadcast_to(table.mean.reshape(means), all_means),
    )


def independent_pair(first: Table, second: Table) -> Table:
    """E x_i y_j of independent tensors with the same axes: the product of their means."""
    assert first.mean is not None
    assert second.mean is not None
    left = first.mean[np.ix_(*(axis.left for axis in first.axes))]
    right = second.mean[np.ix_(*(axis.right for axis in second.axes))]
    return Table(first.dims, left * right, None)


def contract(a: Table, b: Table, spec: str) -> Table:
    """The table of ``einsum(spec, a, b)`` for independent tensors a, b.

        E[Σ_k a_ik b_kj · Σ_l a_i'l b_lj'] = Σ_kl E[a_ik a_i'l] E[b_kj b_lj'],

    the sum over k, l being one over pair classes, weighted by their counts.
    """
    plan = _plan(a.dims, b.dims, a.shape, b.shape, spec)
    a, b = retarget(a, plan.dims_a), retarget(b, plan.dims_b)
    labels_a, labels_b = plan.labels(a, 0), plan.labels(b, 1)
    second: Array = _einsum(a.second, labels_a, b.second, labels_b, *plan.pairs, plan.out)
    mean = None
    if a.mean is not None and b.mean is not None:
        mean = _einsum(a.mean, labels_a, b.mean, labels_b, *plan.sizes, plan.out)
    return Table(plan.dims, second, mean).limited()


@dataclass(frozen=True)
class _Plan:
    """How two tables are contracted.

    Attributes:
        dims: Of the result.
        dims_a, dims_b: What the operands' axes are brought to.
        index: Labels of the axes of each dimension of both operands.
        pairs, sizes: Weights of the pair classes and segments summed over, with their labels.
        out: Labels of the result.
    """

    dims: Dims
    dims_a: Dims
    dims_b: Dims
    index: tuple[tuple[list[int], ...], tuple[list[int], ...]]
    pairs: tuple[Any, ...]
    sizes: tuple[Any, ...]
    out: list[int]

    def labels(self, table: Table, operand: int) -> list[int]:
        """Labels of the axes that an operand has."""
        return [i for dim, labels in zip(table.dims, self.index[operand], strict=True) if dim for i in labels]


@lru_cache(maxsize=4096)
def _plan(dims_a: Dims, dims_b: Dims, shape_a: tuple[int, ...], shape_b: tuple[int, ...], spec: str) -> _Plan:
    inputs, out = spec.split("->")
    letters_a, letters_b = inputs.split(",")
    axes_a, axes_b = dict(zip(letters_a, dims_a, strict=True)), dict(zip(letters_b, dims_b, strict=True))
    dims = {
        letter: common_axes(x, y)
        if (x := axes_a.get(letter, ())) and (y := axes_b.get(letter, ()))
        else x or axes_b.get(letter, ())
        for letter in dict.fromkeys(letters_a + letters_b)
    }
    label, index = 0, {}
    for letter, axes_of in dims.items():
        index[letter] = list(range(label, label + len(axes_of)))
        label += len(axes_of)
    weights: list[Any] = []
    sizes: list[Any] = []
    for letter in [letter for letter in dims if letter not in out]:
        for axis, i in zip(dims[letter], index[letter], strict=True):
            weights += [axis.counts, [i]]
            sizes += [np.array(axis.sizes, float), [i]]
    sizes_a, sizes_b = dict(zip(letters_a, shape_a, strict=True)), dict(zip(letters_b, shape_b, strict=True))
    for letter in out:  # an output axis that neither operand varies along does not occur
        assert max(sizes_a.get(letter, 1), sizes_b.get(letter, 1)) == math.prod(x.n for x in dims[letter])
    return _Plan(
        tuple(dims[letter] for letter in out),
        tuple(dims[letter] for letter in letters_a),
        tuple(dims[letter] for letter in letters_b),
        (tuple(index[letter] for letter in letters_a), tuple(index[letter] for letter in letters_b)),
        tuple(weights),
        tuple(sizes),
        [i for letter in out for i in index[letter]],
    )


_einsum: Any = np.einsum
"""Its stubs do not know the form with index lists."""
