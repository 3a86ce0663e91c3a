"""What the rows of a step's Flow are made from: worked out once for all steps of one structure.

A step's pages, one below the other, are a matrix of moments. A :class:`Layout` says
for each row of the Flow which rows of that matrix it joins (a module call that
several micro-batches made), and what it says besides numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evenflow.flow import ModuleCall, Role, Row, Site, Status
from evenflow.watch.moments import COLUMNS, Rows, merge
from evenflow.watch.outputs import Call, Output, Pass
from evenflow.watch.sample import Sample

OP = "output"
"""Op name of rows that stand for what a module returned, whatever op made it."""
MODEL_STRIDE = 1 << 20
"""Orders of the second model start here, of the third at twice that, so that no two rows share one."""


class Entry(NamedTuple):
    """What a row says besides its numbers; a tuple of plain values, for it is hashed."""

    path: str
    call: int
    op: str
    role: Role
    order: int
    module_type: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    status: Status
    inputs: tuple[int, ...] = ()
    output_of: tuple[Call, ...] = ()

    def row(self) -> Row:
        """As a row of a Flow, without statistics."""
        return Row(
            site=Site(self.path, self.op, self.role, self.call),
            order=self.order,
            module_type=self.module_type,
            shape=self.shape,
            dtype=str(self.dtype).removeprefix("torch."),
            status=self.status,
            inputs=self.inputs,
            output_of=tuple(ModuleCall(path, call) for path, call in self.output_of),
        )


@dataclass(frozen=True)
class Layout:
    """The rows of a step's Flow.

    Attributes:
        entries: What each row says.
        parts: Which rows of the matrix the rows with numbers join, one after the other.
        starts: Where in ``parts`` each of those begins.
        filled: Whether a row has numbers.
        sample: From which sample of the step a row is.
        scaled: Whether its numbers are too large by the loss scale.
        sign: 1, or −1 where the opposite was measured.
        gradients: For each sample, the rows of the matrix with gradients of the parameters that moved.
    """

    entries: tuple[Entry, ...]
    parts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    filled: npt.NDArray[np.bool_]
    sample: npt.NDArray[np.int64]
    scaled: npt.NDArray[np.bool_]
    sign: npt.NDArray[np.float64]
    gradients: tuple[npt.NDArray[np.int64], ...]

    def rows(self, matrix: Rows) -> Rows:
        """Moments and shares of each row of the Flow; NaN where it has none.

        What is dead in all micro-batches is dead in each: the least share bounds it. A share of
        entries counts by how many there are, for passes of one step may differ in size.
        """
        found = np.full((len(self.entries), matrix.shape[1]), np.nan)
        if len(self.parts):
            parts = matrix[self.parts]
            found[self.filled, :COLUMNS] = merge(parts[:, :COLUMNS], self.starts)
            dead, saturated = parts[:, COLUMNS:].T
            found[self.filled, COLUMNS] = np.fmin.reduceat(dead, self.starts)
            whole = np.maximum(np.add.reduceat(parts[:, 0], self.starts), 1.0)
            found[self.filled, COLUMNS + 1] = np.add.reduceat(saturated * parts[:, 0], self.starts) / whole
        return found


class _Part(NamedTuple):
    """A row of the Flow, and which rows of the matrix it joins."""

    entry: Entry
    parts: Sequence[int]
    scaled: bool = False
    sign: float = 1.0


def layout_of(samples: Sequence[Sample]) -> Layout:
    """Work out the layout; what two optimizers saw of one thing is given once."""
    given: set[tuple[str, int, Role]] = set()
    rows: list[tuple[int, _Part]] = []
    gradients = []
    base = 0
    for number, sample in enumerate(samples):
        seen = {}
        for prefix, passes in sample.passes.items():
            seen[prefix] = _merged(passes, sample.offsets[prefix], base)
            base += sum(2 * len(one.outputs) for one in passes)
        weights, base = base, base + len(sample.parameters.moments()[0])
        for part in (*_output_rows(seen), *_weight_rows(sample, seen, weights, base)):
            key = (part.entry.path, part.entry.call, part.entry.role)
            if key not in given:
                given.add(key)
                rows.append((number, part))
        gradients.append(base + _moved_gradients(sample))
        base += len(sample.parameters.moments()[1])
    lengths = [len(part.parts) for _, part in rows if part.parts]
    return Layout(
        entries=tuple(part.entry for _, part in rows),
        parts=np.array([row for _, part in rows for row in part.parts], np.int64),
        starts=np.cumsum([0, *lengths[:-1]]),
        filled=np.array([bool(part.parts) for _, part in rows], np.bool_),
        sample=np.array([number for number, _ in rows], np.int64),
        scaled=np.array([part.scaled for _, part in rows], np.bool_),
        sign=np.array([part.sign for _, part in rows], np.float64),
        gradients=tuple(gradients),
    )


def _moved_gradients(sample: Sample) -> npt.NDArray[np.int64]:
    """Rows of the gradients that the optimizer steps along; of all where it did not step."""
    seen = sample.parameters
    pairs = [
        (row, change) for row, change in zip(seen.gradient_rows, seen.change_rows, strict=True) if row >= 0
    ]
    moved = [row for row, change in pairs if change >= 0]
    return np.array(moved or [row for row, _ in pairs], np.int64)


@dataclass(slots=True)
class _Seen:
    """A module call, over all passes of a step that made it."""

    order: int
    inputs: tuple[int, ...]
    output: Output
    activations: list[int] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)


def _merged(passes: Sequence[Pass], offset: int, base_row: int) -> dict[Call, _Seen]:
    """The calls of several passes, each once; passes that have nothing in common come one after the other."""
    seen: dict[Call, _Seen] = {}
    following = offset
    for one in passes:
        known = next((seen[o.module].order - o.order for o in one.outputs if o.module in seen), None)
        base = following if known is None else known
        for index, output in enumerate(one.outputs):
            if output.module not in seen:
                order = base + output.order if known is None else following
                seen[output.module] = _Seen(order, tuple(base + i for i in output.inputs), output)
                following = max(following, order + 1)
            seen[output.module].activations.append(base_row + 2 * index)
            if one.has_gradient[index]:
                seen[output.module].gradients.append(base_row + 2 * index + 1)
        base_row += 2 * len(one.outputs)
    return seen


def _output_rows(seen: Mapping[str, Mapping[Call, _Seen]]) -> Iterator[_Part]:
    for prefix, calls in seen.items():
        for (path, call), one in calls.items():
            output = one.output
            of = tuple((join(prefix, name), number) for name, number in output.output_of)
            activation = Entry(
                join(prefix, path), call, OP, Role.ACTIVATION, one.order, output.module_type, output.shape,
                output.dtype, Status.OK, one.inputs, of,
            )  # fmt: skip
            status = Status.OK if one.gradients else Status.DETACHED
            gradient = activation._replace(role=Role.ACTIVATION_GRADIENT, status=status)
            yield _Part(activation, one.activations)
            yield _Part(gradient, one.gradients, scaled=True)


def _weight_rows(
    sample: Sample, seen: Mapping[str, Mapping[Call, _Seen]], weights: int, gradients: int
) -> Iterator[_Part]:
    orders: dict[str, int] = {}
    for prefix, calls in seen.items():
        for one in calls.values():
            for path, _ in one.output.output_of:
                orders.setdefault(join(prefix, path), one.order)
    last = max(orders.values(), default=-1) + 1
    found = sample.parameters
    for place, weight, gradient, change in zip(
        found.places, found.weight_rows, found.gradient_rows, found.change_rows, strict=True
    ):
        owner = place.name.rpartition(".")[0]
        if gradient >= 0:
            status = Status.OK
        elif not place.trainable:
            status = Status.FROZEN
        else:  # no hook can tell whether a module that ran used all of its parameters
            status = Status.DETACHED if owner in orders else Status.UNUSED
        entry = Entry(
            place.name, 0, "parameter", Role.PARAMETER, orders.get(owner, last), place.module_type,
            place.shape, place.dtype, status,
        )  # fmt: skip
        yield _Part(entry, (weights + weight,))
        of_gradient = entry._replace(role=Role.PARAMETER_GRADIENT)
        yield _Part(of_gradient, (gradients + gradient,) if gradient >= 0 else (), scaled=True)
        if change >= 0:
            yield _Part(entry._replace(role=Role.UPDATE), (weights + change,), sign=-1.0)


def join(prefix: str, path: str) -> str:
    """``generator``, ``0.weight`` → ``generator.0.weight``; either may be empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path
