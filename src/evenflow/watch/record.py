"""From what the hooks saw to the tables of a run, in the thread that writes.

The hot path only appends to lists. Merging micro-batches, undoing the loss scale,
fetching from devices and building Arrow columns happen here, later, in the
store's thread, so that training waits for none of it.

What does not change from step to step (path, shape, order, inputs …) is one row
of a small table of sites; a step refers to it by number, and Arrow's ``take``
repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np
import pyarrow as pa
from torch import Tensor

from evenflow.flow import ModuleCall, Role, Row, Site, Status
from evenflow.flow.arrow import to_arrow
from evenflow.store.schema import TABLES
from evenflow.watch.moments import Taken, fetch, merge
from evenflow.watch.parameters import ParameterView
from evenflow.watch.passes import Call, Output, Pass
from evenflow.watch.units import Share

OP = "output"
"""Op name of rows that stand for what a module returned, whatever op made it."""
MODEL_STRIDE = 1 << 20
"""Orders of the second model start here, of the third at twice that, so that no two rows share one."""
_ACTIVATION, _GRADIENT, _PARAMETER, _PARAMETER_GRADIENT, _UPDATE = (role.value for role in Role)
_OK, _FROZEN, _UNUSED, _DETACHED = (status.value for status in Status)
_MOST_SITES = 1 << 16
"""Sites that are remembered; batches of ever new shapes would make ever new ones."""


@dataclass(slots=True)
class Sample:
    """What was seen in one optimizer's step.

    Attributes:
        passes: Prefix of a model → the passes that count.
        offsets: Prefix of a model → what its orders start from.
        parameters: Its parameters.
        scale: By what gradients were too large during backward.
        remaining: By what they still are when the optimizer gets them (fused optimizers).
    """

    passes: dict[str, list[Pass]]
    offsets: dict[str, int]
    parameters: list[ParameterView]
    scale: float = 1.0
    remaining: float = 1.0


@dataclass(slots=True)
class Step:
    """What is known of one step: figures by name (several values are averaged), samples, events."""

    number: int
    figures: dict[str, list[float | Tensor]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)


class _Place(NamedTuple):
    """What a row says besides its numbers; a tuple of plain values, for it is hashed for every row."""

    path: str
    call: int
    op: str
    role: str
    order: int
    module_type: str
    shape: tuple[int, ...]
    dtype: str
    status: str
    inputs: tuple[int, ...] = ()
    output_of: tuple[Call, ...] = ()

    def row(self) -> Row:
        return Row(
            site=Site(self.path, self.op, Role(self.role), self.call),
            order=self.order,
            module_type=self.module_type,
            shape=self.shape,
            dtype=self.dtype,
            status=Status(self.status),
            inputs=self.inputs,
            output_of=tuple(ModuleCall(path, call) for path, call in self.output_of),
        )


class _Numbers(NamedTuple):
    """The entries that a row is about: micro-batches to merge, then to divide by ``scale``."""

    parts: Sequence[Taken]
    scale: float = 1.0
    sign: float = 1.0
    dead: float | None = None
    saturated: float | None = None


_NOTHING = _Numbers(())


@final
class Recorder:
    """Turns steps into tables."""

    def __init__(self) -> None:
        self._places: dict[_Place, int] = {}
        self._table: pa.Table | None = None

    def tables(self, steps: Sequence[Step]) -> Iterator[tuple[str, pa.Table]]:
        """The rows of some steps, table by table."""
        events = [(step.number, kind, text) for step in steps for kind, text in step.events]
        if events:
            yield "events", _long("events", events)
        scalars = [
            (step.number, name, _mean(values)) for step in steps for name, values in step.figures.items()
        ]
        if scalars:
            yield "scalars", _long("scalars", scalars)
        samples = [(step, sample) for step in steps for sample in step.samples]
        parameters = [row for step, sample in samples for row in _parameter_rows(step, sample)]
        if parameters:
            yield "parameters", _long("parameters", parameters)
        rows = [(step.number, place, numbers) for step in steps for place, numbers in _rows(step)]
        if rows:
            yield "flow", self._flow(rows)

    def _flow(self, rows: Sequence[tuple[int, _Place, _Numbers]]) -> pa.Table:
        if len(self._places) > _MOST_SITES:
            self._places.clear()
        known = len(self._places)
        places = [self._places.setdefault(place, len(self._places)) for _, place, _ in rows]
        if self._table is None or known == 0 or len(self._places) != known:
            self._table = to_arrow(place.row() for place in self._places)
        table = self._table.take(pa.array(places, pa.int64()))
        for name, values in _columns([numbers for _, _, numbers in rows]).items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, values.cast(table.schema.field(index).type))
        steps = pa.array([step for step, _, _ in rows], pa.int64())
        return table.add_column(0, "step", steps).cast(TABLES["flow"])


def _columns(numbers: Sequence[_Numbers]) -> dict[str, pa.Array]:
    """The statistics of some rows; null where a row has none. As :meth:`Moments.stats`, column by column."""
    found = iter(fetch([part for one in numbers for part in one.parts]))
    merged = [merge([next(found) for _ in one.parts]) for one in numbers]
    size, total, square, largest, nonfinite = np.array(merged, np.float64).T
    scale = np.array([one.scale for one in numbers])
    sign = np.array([one.sign for one in numbers])
    finite = np.maximum(size - nonfinite, 1.0)
    empty = np.array([not one.parts for one in numbers])
    columns = {
        "count": size.astype(np.int64),
        "mean": sign * total / finite / scale,
        "mean_square": square / finite / scale / scale,
        "abs_max": largest / scale,
        "nonfinite_count": nonfinite.astype(np.int64),
    }
    return {
        **{name: pa.array(values, mask=empty) for name, values in columns.items()},
        "dead_fraction": pa.array([one.dead for one in numbers], pa.float64()),
        "saturated_fraction": pa.array([one.saturated for one in numbers], pa.float64()),
    }


@dataclass(slots=True)
class _Seen:
    """A module call, over all passes of a step that made it."""

    order: int
    inputs: tuple[int, ...]
    output: Output
    activations: list[Taken] = field(default_factory=list)
    gradients: list[Taken] = field(default_factory=list)
    dead: list[Share] = field(default_factory=list)
    saturated: list[Share] = field(default_factory=list)


def _rows(step: Step) -> Iterator[tuple[_Place, _Numbers]]:
    """The Flow of one step; what two optimizers saw of one thing is given once."""
    given: set[tuple[str, int, str]] = set()
    for sample in step.samples:
        seen = {prefix: _merged(passes, sample.offsets[prefix]) for prefix, passes in sample.passes.items()}
        for place, numbers in (*_output_rows(sample, seen), *_weight_rows(sample, seen)):
            key = (place.path, place.call, place.role)
            if key not in given:
                given.add(key)
                yield place, numbers


def _merged(passes: Sequence[Pass], offset: int) -> dict[Call, _Seen]:
    """The calls of several passes, each once; passes that have nothing in common come one after the other."""
    seen: dict[Call, _Seen] = {}
    following = offset
    for one in passes:
        known = next((seen[o.module].order - o.order for o in one.outputs if o.module in seen), None)
        base = following if known is None else known
        for output in one.outputs:
            if output.module not in seen:
                order = base + output.order if known is None else following
                seen[output.module] = _Seen(order, tuple(base + i for i in output.inputs), output)
                following = max(following, order + 1)
            seen[output.module].activations.append(output.activation)
            if output.gradient is not None:
                seen[output.module].gradients.append(output.gradient)
            if output.dead is not None:
                seen[output.module].dead.append(output.dead)
            if output.saturated is not None:
                seen[output.module].saturated.append(output.saturated)
    return seen


def _output_rows(
    sample: Sample, seen: Mapping[str, Mapping[Call, _Seen]]
) -> Iterator[tuple[_Place, _Numbers]]:
    for prefix, calls in seen.items():
        for (path, call), one in calls.items():
            output = one.output
            of = tuple((join(prefix, name), number) for name, number in output.output_of)
            name = join(prefix, path)
            for role, status, numbers in (
                (_ACTIVATION, _OK, _activation(one)),
                (
                    _GRADIENT,
                    _OK if one.gradients else _DETACHED,
                    _Numbers(one.gradients, sample.scale) if one.gradients else _NOTHING,
                ),
            ):
                place = _Place(
                    name, call, OP, role, one.order, output.module_type, output.shape, output.dtype, status,
                    one.inputs, of,
                )  # fmt: skip
                yield place, numbers


def _activation(one: _Seen) -> _Numbers:
    """An output's numbers. What is dead in all micro-batches is dead in each: the least share bounds it."""
    return _Numbers(
        one.activations,
        dead=min(map(float, one.dead), default=None),
        saturated=_mean(one.saturated) if one.saturated else None,
    )


def _weight_rows(
    sample: Sample, seen: Mapping[str, Mapping[Call, _Seen]]
) -> Iterator[tuple[_Place, _Numbers]]:
    orders: dict[str, int] = {}
    for prefix, calls in seen.items():
        for one in calls.values():
            for path, _ in one.output.output_of:
                orders.setdefault(join(prefix, path), one.order)
    last = max(orders.values(), default=-1) + 1
    for view in sample.parameters:
        owner = view.name.rpartition(".")[0]
        if view.has_gradient:
            status = _OK
        elif not view.trainable:
            status = _FROZEN
        else:  # no hook can tell whether a module that ran used all of its parameters
            status = _DETACHED if owner in orders else _UNUSED
        for role, taken, scale, sign in (
            (_PARAMETER, view.weight, 1.0, 1.0),
            (_PARAMETER_GRADIENT, view.gradient, sample.scale, 1.0),
            (_UPDATE, view.change, 1.0, -1.0),
        ):
            if role is _UPDATE and taken is None:
                continue
            order = orders.get(owner, last)
            place = _Place(
                view.name, 0, "parameter", role, order, view.module_type, view.shape, view.dtype, status
            )
            yield place, _NOTHING if taken is None else _Numbers((taken,), scale, sign)


def _parameter_rows(step: Step, sample: Sample) -> Iterator[tuple[int, str, str, float]]:
    for view in sample.parameters:
        if view.clipped_norm is not None:
            norm = float(view.clipped_norm) / sample.remaining
            yield step.number, view.name, "gradient_norm_after_clipping", norm
        if view.second_moment is not None:
            yield (
                step.number,
                view.name,
                "second_moment_mean",
                float(view.second_moment) / math.prod(view.shape),
            )
        if view.lost is not None:
            yield step.number, view.name, "lost_update_fraction", float(view.lost)


def gradient_norm(sample: Sample) -> float | None:
    """Norm of all gradients before clipping; None if there are none."""
    moments = fetch([view.gradient for view in sample.parameters if view.gradient is not None])
    if not moments:
        return None
    if any(one.nonfinite for one in moments):
        return math.nan
    return math.sqrt(math.fsum(one.square for one in moments)) / sample.scale


def join(prefix: str, path: str) -> str:
    """``generator``, ``0.weight`` → ``generator.0.weight``; either may be empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _mean(values: Sequence[Share]) -> float:
    return sum(float(value) for value in values) / len(values)


def _long(table: str, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    schema = TABLES[table]
    arrays = [pa.array(column) for column in columns]
    return pa.table(arrays, names=schema.names).cast(schema)
