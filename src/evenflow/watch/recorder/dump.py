"""Writing a flight: a run with the ring's steps, and ``flight.json`` beside its parts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa

from evenflow.flow import Flow
from evenflow.store import RunWriter
from evenflow.store.schema import TABLES
from evenflow.watch.record import Recorder
from evenflow.watch.recorder.flight import NAME, Flight
from evenflow.watch.recorder.ring import Ring
from evenflow.watch.sample import Step


def write_flight(folder: str, flight: Flight, ring: Ring, flow: Flow | None) -> Flight:
    """Keep a flight; if that fails it is kept in memory alone, and says so.

    Args:
        folder: Where to; made anew.
        flight: What broke.
        ring: The steps before.
        flow: The bad pass op by op, if it could be run again.

    Returns:
        The flight, with its place.
    """
    try:
        metadata = {"flight": flight.message, "written": datetime.now(UTC).isoformat(timespec="seconds")}
        writer = RunWriter(folder, metadata, overwrite=True)
        for table, rows in Recorder().tables([*ring.steps, _last(flight)]):
            writer.add(table, rows)
        norms = _norms(ring)
        if norms.num_rows:
            writer.add("parameters", norms)
        if flow is not None:
            writer.add("flow", _rows(flight.step, flow))
        writer.close("failed")
        kept = replace(flight, folder=folder)
        writer.storage.write(NAME, kept.to_json().encode())
    except Exception as error:  # a full disk must not cost the run, nor what is known of it
        return replace(flight, notes=[*flight.notes, f"It could not be written to {folder}: {error}."])
    return kept


def _last(flight: Flight) -> Step:
    return Step(flight.step, events=[("flight", flight.message)])


def _rows(step: int, flow: Flow) -> pa.Table:
    table = flow.to_arrow()
    steps = pa.array([step] * table.num_rows, pa.int64())
    return table.add_column(0, "step", steps).cast(TABLES["flow"])


def _norms(ring: Ring) -> pa.Table:
    """The gradient norm of each parameter in each step of the ring."""
    rows = [
        (step, path, "gradient_norm", value)
        for one in ring.norms.values()
        for step, values in one.rows()
        for path, value in zip(one.names, values, strict=True)
    ]
    schema = TABLES["parameters"]
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return (
        pa.table([pa.array(list(column)) for column in columns], names=schema.names).cast(schema)
        if rows
        else schema.empty_table()
    )
