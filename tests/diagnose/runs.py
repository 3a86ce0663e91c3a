"""Synthetic runs with known content, kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evenflow.flow import Role, Row, Run, Site, Stats
from evenflow.flow.arrow import SCHEMA, to_arrow

SGD = {"class": "SGD", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
ADAM = {"class": "Adam", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}

OverSteps = float | Callable[[int], float]


def _at(value: OverSteps, step: int) -> float:
    return value(step) if callable(value) else value


@dataclass(frozen=True)
class Weight:
    """A parameter over the steps; sizes are RMS values."""

    name: str
    weight: OverSteps = 0.1
    gradient: OverSteps = 1e-2
    update: OverSteps = 1e-3
    shape: tuple[int, ...] = (32, 32)
    dtype: str = "float32"

    def rows(self, step: int, order: int, before: tuple[int, ...]) -> Iterable[Row]:
        sizes = {
            Role.PARAMETER: self.weight,
            Role.PARAMETER_GRADIENT: self.gradient,
            Role.UPDATE: self.update,
        }
        for role, size in sizes.items():
            yield _row(Site(self.name, "parameter", role), order, _at(size, step), self.shape, self.dtype)


@dataclass(frozen=True)
class Output:
    """What a module returned, over the steps."""

    path: str
    module_type: str = "Linear"
    size: OverSteps = 1.0
    gradient: OverSteps = 1e-3
    shape: tuple[int, ...] = (64, 32)
    dtype: str = "float32"
    dead: OverSteps | None = None
    saturated: OverSteps | None = None
    mean: OverSteps = 0.0

    def rows(self, step: int, order: int, before: tuple[int, ...]) -> Iterable[Row]:
        activation = _row(
            Site(self.path, "output", Role.ACTIVATION),
            order, _at(self.size, step), self.shape, self.dtype, _at(self.mean, step),
        )  # fmt: skip
        gradient = _row(
            Site(self.path, "output", Role.ACTIVATION_GRADIENT),
            order, _at(self.gradient, step), self.shape, self.dtype,
        )  # fmt: skip
        for row in (activation, gradient):
            yield replace(
                row,
                module_type=self.module_type,
                inputs=before,
                dead_fraction=None if self.dead is None else _at(self.dead, step),
                saturated_fraction=None if self.saturated is None else _at(self.saturated, step),
            )


def _row(site: Site, order: int, size: float, shape: tuple[int, ...], dtype: str, mean: float = 0.0) -> Row:
    count = 1
    for length in shape:
        count *= length
    broken = not abs(size) < float("inf")
    stats = Stats(
        count, mean, 0.0 if broken else size**2, abs_max=0.0 if broken else 4.0 * size,
        nonfinite_count=count if broken else 0,
    )  # fmt: skip
    return Row(site, order, shape=shape, dtype=dtype, stats=stats)


@dataclass
class Recorded:
    """The tables of a run, in memory; see :class:`evenflow.flow.run.Tables`."""

    tables: dict[str, pa.Table]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    location: str = "memory"

    def read(self, table: str, columns: list[str] | None = None, step: int | None = None) -> pa.Table:
        rows = self.tables[table]
        if step is not None:
            rows = rows.filter(pc.equal(rows["step"], step))
        return rows if columns is None else rows.select(columns)


def run(
    steps: int,
    *sites: Weight | Output,
    loss: Callable[[int], float] | None = None,
    scalars: Mapping[str, Callable[[int], float]] | None = None,
    parameters: Mapping[tuple[str, str], Callable[[int], float]] | None = None,
    events: Sequence[tuple[int, str, str]] = (),
    optimizer: Mapping[str, Any] | None = None,
    models: Sequence[str] = (),
    every: int = 1,
) -> Run:
    """A run of so many steps.

    Args:
        steps: How many.
        sites: What Flows hold, in forward order.
        loss: Step → loss; None if none was logged.
        scalars: Name → step → value.
        parameters: (parameter, figure) → step → value, at sampled steps.
        events: (step, kind, text).
        optimizer: Role → settings; SGD by default.
        models: Roles that have models of their own.
        every: Every how many steps there is a Flow.
    """
    sampled = range(0, steps, every)
    rows, numbers = [], []
    for step in sampled:
        before: tuple[int, ...] = ()
        for order, site in enumerate(sites):
            for row in site.rows(step, order, before):
                rows.append(row)
                numbers.append(step)
            before = (order,) if isinstance(site, Output) else before
    flow = to_arrow(rows).add_column(0, "step", pa.array(numbers, pa.int64()))
    given = {**({"loss": loss} if loss is not None else {}), **(scalars or {})}
    figures = [(step, name, value(step)) for name, value in given.items() for step in range(steps)]
    tables = {
        "flow": flow if rows else pa.schema([("step", pa.int64()), *SCHEMA]).empty_table(),
        "scalars": _long(figures, ("step", "name", "value")),
        "parameters": _long(
            [(s, path, name, f(s)) for (path, name), f in (parameters or {}).items() for s in sampled],
            ("step", "path", "name", "value"),
        ),
        "events": _long(list(events), ("step", "kind", "text")),
    }
    model = dict.fromkeys(models, "Net") if models else "Net"
    return Run(Recorded(tables, {"optimizer": optimizer or {"": SGD}, "model": model}))


def _long(rows: Sequence[tuple[Any, ...]], names: tuple[str, ...]) -> pa.Table:
    types = {"step": pa.int64(), "value": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [[] for _ in names]
    return pa.table([pa.array(c, schema.field(i).type) for i, c in enumerate(columns)], schema=schema)
