"""Small runs with known content."""

from __future__ import annotations

import os

import pyarrow as pa

from evenflow.flow import Role, Row, Site, Stats
from evenflow.flow.arrow import to_arrow
from evenflow.store import RunWriter
from evenflow.store.schema import TABLES


def loss_of(step: int) -> float:
    """A value that tells its step."""
    return 1.0 / (step + 1)


def scalars(steps: range) -> pa.Table:
    columns = {
        "step": [step for step in steps for _ in range(2)],
        "name": ["loss", "lr"] * len(steps),
        "value": [value for step in steps for value in (loss_of(step), 0.1)],
    }
    return pa.table(columns).cast(TABLES["scalars"])


def flow(step: int) -> pa.Table:
    rows = [
        Row(
            Site(f"{i}.weight", "parameter", role),
            order=i,
            shape=(3, 4),
            stats=Stats(12, 0.0, loss_of(step) ** 2, abs_max=1.0),
        )
        for i in range(3)
        for role in (Role.PARAMETER, Role.PARAMETER_GRADIENT, Role.UPDATE)
    ]
    table = to_arrow(rows)
    return table.add_column(0, "step", pa.array([step] * len(rows), pa.int64())).cast(TABLES["flow"])


def event(step: int, text: str) -> pa.Table:
    return pa.table({"step": [step], "kind": ["note"], "text": [text]}).cast(TABLES["events"])


def fill(writer: RunWriter, flushes: range) -> None:
    """Write flushes of 10 steps, each with 20 scalars, one Flow and one event."""
    for flush in flushes:
        writer.add("scalars", scalars(range(10 * flush, 10 * flush + 10)))
        writer.add("flow", flow(10 * flush))
        writer.add("events", event(10 * flush, f"flush {flush}"))
        writer.flush()


def write(path: str | os.PathLike[str] | None, flushes: int = 6, *, close: bool = True) -> RunWriter:
    """A run of so many flushes."""
    writer = RunWriter(path, {"model": "Net"}, flush_seconds=1e6)
    fill(writer, range(flushes))
    if close:
        writer.close()
    return writer
