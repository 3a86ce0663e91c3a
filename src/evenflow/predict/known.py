"""Known entries, measured in the segments of the random tensors that they meet.

A table of cosines is small at one position and large at another. Where it
multiplies a tensor whose positions fall into segments, such as the gradient of
keys, large where few queries look, the mean of the product is not the product of
the means: so its moments are taken segment by segment,

    m[s] = mean of x_i over i in s,   K[a, b] = mean of x_i x_j over i in a, j in b, i ≠ j.

This is for gradients only. Scores that know the positions of their keys would
need a softmax that does: its rule takes one spread for all keys, and with segmented
rotary scores the gradients of Llama's queries come out a few hundredths of a decade worse.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from evenflow.predict.axes import Array, Axis
from evenflow.predict.combine import broadcast
from evenflow.predict.fields import Field, Leaf
from evenflow.predict.table import Dims, Table, finite

_einsum: Any = np.einsum
"""Its stubs do not know the form with index lists."""
_known: WeakKeyDictionary[Leaf, dict[Dims, Table]] = WeakKeyDictionary()


def refined(field: Field, dims: Dims, table: Table) -> Table:
    """The table of a field on given axes, measured on its entries if they are known.

    Args:
        field: The field; its shape broadcasts to that of ``dims``.
        dims: Axes of each dimension.
        table: Its table on these axes, which is right where nothing is segmented.
    """
    if not isinstance(field, Leaf) or field.values is None or field.cotangent or field.values.is_complex():
        return table
    shape = (1,) * (len(dims) - len(field.shape)) + field.shape
    own = tuple(axes_of if n > 1 else () for axes_of, n in zip(dims, shape, strict=True))
    if all(axis.segments == 1 for axes_of in own for axis in axes_of):
        return table
    memory = _known.setdefault(field, {})
    if own not in memory:
        memory[own] = measured_in(field.values, own)
    return broadcast(memory[own], dims)


def measured_in(values: torch.Tensor, dims: Dims) -> Table:
    """The table of a tensor with known entries on given axes."""
    flat = [axis for axes_of in dims for axis in axes_of]
    x = finite(values).reshape([axis.n for axis in flat])
    second = np.zeros([axis.classes for axis in flat])
    for agree in np.ndindex((2,) * len(flat)):
        sums, right, out = x, [], []
        for at, axis in enumerate(flat):
            sums = sums if agree[at] else _by_segments(sums, at, axis)
            right.append(at if agree[at] else at + len(flat))
            out += [at] if agree[at] else [at, at + len(flat)]
        pairs: Array = _einsum(sums, list(range(len(flat))), sums, right, out)
        for at, axis in enumerate(flat):
            if agree[at]:
                pairs = _by_segments(pairs, at, axis)
            else:
                pairs = pairs.reshape((*pairs.shape[:at], axis.segments**2, *pairs.shape[at + 2 :]))
        second[
            tuple(a.agree if same else slice(a.segments**2) for a, same in zip(flat, agree, strict=True))
        ] = pairs
    for at, axis in enumerate(flat):
        second = np.moveaxis(_averaged(np.moveaxis(second, at, 0), axis), 0, at)
    mean = x
    for at, axis in enumerate(flat):
        size = np.array(axis.sizes, float).reshape([-1 if d == at else 1 for d in range(len(flat))])
        mean = _by_segments(mean, at, axis) / size
    return Table(dims, second, mean)


def _by_segments(values: Array, at: int, axis: Axis) -> Array:
    """Sums over the segments of one axis."""
    starts = np.array(axis.bounds) - np.array(axis.sizes)
    summed: Array = np.add.reduceat(values, starts, axis=at)
    return summed


def _averaged(sums: Array, axis: Axis) -> Array:
    """From sums over all pairs and over agreeing ones to the averages of the pair classes [C, …]."""
    sums, diagonal = sums.copy(), np.arange(axis.segments) * (axis.segments + 1)
    agreeing = sums[axis.agree]
    sums[diagonal] -= agreeing
    sums /= np.maximum(axis.counts, 1.0).reshape([-1] + [1] * (sums.ndim - 1))
    alone = np.array(axis.sizes) == 1  # no pair there differs: any value will do, this one is tame
    sums[diagonal[alone]] = sums[axis.agree][alone]
    return sums
