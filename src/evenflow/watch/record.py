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
from dataclasses import dataclass, field, replace
from typing import final

import pyarrow as pa
from torch import Tensor

from evenflow.flow import ModuleCall, Role, Row, Site, Stats, Status
from evenflow.flow.arrow import to_arrow
from evenflow.store.schema import TABLES
from evenflow.watch.moments import Moments, Taken, fetch, merge
from evenflow.watch.parameters import ParameterView
from evenflow.watch.passes import Output, Pass

OP = "output"
"""Op name of rows that stand for what a module returned, whatever op made it."""
MODEL_STRIDE = 1 << 20
"""Orders of the second model start here, of the third at twice that, so that no two rows share one."""
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


@final
class Recorder:
    """Turns steps into tables."""

    def __init__(self) -> None:
        self._sites: dict[Row, int] = {}
        self._table: pa.Table | None = None

    def tables(self, steps: Sequence[Step]) -> Iterator[tuple[str, pa.Table]]:
        """The rows of some steps, table by table."""
        if len(self._sites) > _MOST_SITES:
            self._sites.clear()
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
        rows = [(step.number, row) for step in steps for row in _rows(step)]
        if rows:
            yield "flow", self._flow(rows)

    def _flow(self, rows: Sequence[tuple[int, Row]]) -> pa.Table:
        known = len(self._sites)
        sites = [self._sites.setdefault(replace(row, stats=None), len(self._sites)) for _, row in rows]
        if self._table is None or len(self._sites) != known or known == 0:
            self._table = to_arrow(self._sites)
        table = self._table.take(pa.array(sites, pa.int64()))
        stats = [row.stats for _, row in rows]
        for name in ("count", "mean", "mean_square", "abs_max", "nonfinite_count"):
            column = table.schema.get_field_index(name)
            values = [None if one is None else getattr(one, name) for one in stats]
            table = table.set_column(column, name, pa.array(values, table.schema.field(name).type))
        steps = pa.array([step for step, _ in rows], pa.int64())
        return table.add_column(0, "step", steps).cast(TABLES["flow"])


@dataclass(slots=True)
class _Seen:
    """A module call, over all passes of a step that made it."""

    order: int
    inputs: tuple[int, ...]
    output: Output
    activations: list[Taken] = field(default_factory=list)
    gradients: list[Taken] = field(default_factory=list)


def _rows(step: Step) -> Iterator[Row]:
    """The Flow of one step; what two optimizers saw of one thing is given once."""
    given: set[Site] = set()
    for sample in step.samples:
        seen = {prefix: _merged(passes, sample.offsets[prefix]) for prefix, passes in sample.passes.items()}
        for row in (*_output_rows(sample, seen), *_weight_rows(sample, seen)):
            if row.site not in given:
                given.add(row.site)
                yield row


def _merged(passes: Sequence[Pass], offset: int) -> dict[ModuleCall, _Seen]:
    """The calls of several passes, each once; passes that have nothing in common come one after the other."""
    seen: dict[ModuleCall, _Seen] = {}
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
    return seen


def _output_rows(sample: Sample, seen: Mapping[str, Mapping[ModuleCall, _Seen]]) -> Iterator[Row]:
    for prefix, calls in seen.items():
        for call, one in calls.items():
            row = Row(
                site=Site(join(prefix, call.path), OP, Role.ACTIVATION, call.call),
                order=one.order,
                module_type=one.output.module_type,
                shape=one.output.shape,
                dtype=one.output.dtype,
                inputs=one.inputs,
                output_of=tuple(ModuleCall(join(prefix, c.path), c.call) for c in one.output.output_of),
                stats=_stats(one.activations),
            )
            yield row
            yield replace(
                row,
                site=replace(row.site, role=Role.ACTIVATION_GRADIENT),
                status=Status.OK if one.gradients else Status.DETACHED,
                stats=_stats(one.gradients, sample.scale) if one.gradients else None,
            )


def _weight_rows(sample: Sample, seen: Mapping[str, Mapping[ModuleCall, _Seen]]) -> Iterator[Row]:
    orders: dict[str, int] = {}
    for prefix, calls in seen.items():
        for one in calls.values():
            for call in one.output.output_of:
                orders.setdefault(join(prefix, call.path), one.order)
    last = max(orders.values(), default=-1) + 1
    for view in sample.parameters:
        owner = view.name.rpartition(".")[0]
        if view.has_gradient:
            status = Status.OK
        elif not view.trainable:
            status = Status.FROZEN
        else:  # no hook can tell whether a module that ran used all of its parameters
            status = Status.DETACHED if owner in orders else Status.UNUSED
        for role, taken, scale, sign in (
            (Role.PARAMETER, view.weight, 1.0, 1.0),
            (Role.PARAMETER_GRADIENT, view.gradient, sample.scale, 1.0),
            (Role.UPDATE, view.change, 1.0, -1.0),
        ):
            if role is Role.UPDATE and taken is None:
                continue
            yield Row(
                site=Site(view.name, "parameter", role),
                order=orders.get(owner, last),
                module_type=view.module_type,
                shape=view.shape,
                dtype=view.dtype,
                status=status,
                stats=None if taken is None else _stats([taken], scale, sign),
            )


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


def _stats(taken: Sequence[Taken], scale: float = 1.0, sign: float = 1.0) -> Stats:
    moments: Moments = merge(fetch(taken))
    return moments.stats(scale, sign)


def _mean(values: Sequence[float | Tensor]) -> float:
    return sum(float(value) for value in values) / len(values)


def _long(table: str, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    schema = TABLES[table]
    arrays = [pa.array(column) for column in columns]
    return pa.table(arrays, names=schema.names).cast(schema)
