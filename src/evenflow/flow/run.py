"""Run: many Flows over steps, the scalars beside them, and what happened.

A run is read from wherever its tables are kept (:class:`Tables`): a folder on
disk, memory, or a single Flow. Tables are loaded when they are asked for and
column by column, so opening a run of a million steps costs nothing. A Flow is a
run of length one (:meth:`Run.of`), so what judges runs judges Flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, final

from evenflow.errors import EvenflowError
from evenflow.flow.flow import Flow
from evenflow.flow.site import Role

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


class Tables(Protocol):
    """Where the tables of a run are kept."""

    @property
    def location(self) -> str:
        """The place, for messages."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts on the whole run that fit in JSON."""

    def read(self, table: str, columns: list[str] | None = None, step: int | None = None) -> pa.Table:
        """The rows of a table (``flow``, ``scalars``, ``parameters``, ``events``), all or of one step."""


@dataclass(frozen=True, slots=True)
class Series:
    """One figure over the steps of a run.

    Attributes:
        steps: The steps at which it was taken [n], ascending.
        values: Its values [n].
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> float | None:
        """The value of a step; None if it was not taken there."""
        found = self.steps.searchsorted(step)
        return float(self.values[found]) if found < len(self.steps) and self.steps[found] == step else None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        step: During which step.
        kind: What sort of thing, one word, e.g. ``skipped_step``.
        text: What happened, in words.
    """

    step: int
    kind: str
    text: str


class StepError(EvenflowError):
    """A run has no Flow of that step."""


@final
class Run:
    """A run: ``run.flow(step)``, ``run.scalars["loss"]``, ``run.events``.

    Args:
        tables: Where its tables are kept.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    @classmethod
    def of(cls, flow: Flow) -> Run:
        """A run of one step, 0."""
        return cls(_OneFlow(flow))

    def __repr__(self) -> str:
        return f"<Run at {self._tables.location}: {len(self.steps)} Flows, scalars {', '.join(self.scalars)}>"

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts on the whole run: versions, model, configuration, state."""
        return self._tables.metadata

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps of which there is a Flow, ascending."""
        column = self._tables.read("flow", ["step"])["step"]
        return tuple(sorted(column.unique().to_pylist()))

    def flow(self, step: int = -1) -> Flow:
        """The Flow of a step.

        Args:
            step: The step; −1 for the last one that has a Flow.

        Raises:
            StepError: There is none.
        """
        if step == -1 and self.steps:
            step = self.steps[-1]
        rows = self._tables.read("flow", step=step)
        if rows.num_rows == 0:
            raise StepError(
                f"The run at {self._tables.location} has no Flow of step {step}. " + _nearby(self.steps, step)
            )
        scalars = {name: series.at(step) for name, series in self.scalars.items()}
        known = {name: value for name, value in scalars.items() if value is not None}
        if isinstance(self._tables, _OneFlow):
            return self._tables.flow
        return Flow.from_arrow(
            rows.drop_columns(["step"]), "measured", {**self.metadata, "step": step, **known}
        )

    def flows(self) -> Iterator[tuple[int, Flow]]:
        """Step and Flow, one after the other; only one is in memory at a time."""
        for step in self.steps:
            yield step, self.flow(step)

    @cached_property
    def scalars(self) -> Mapping[str, Series]:
        """Name → its values over the steps."""
        return _series(self._tables.read("scalars"), "name")

    def parameter(self, name: str) -> Mapping[str, Series]:
        """A figure of single parameters that no Flow holds: parameter → its values over the steps.

        Args:
            name: Such as ``second_moment_mean`` or ``clipped_gradient_norm``.
        """
        from evenflow.flow.columns import to_numpy, where

        table = self._tables.read("parameters").unify_dictionaries().combine_chunks()
        names = table["name"].combine_chunks()
        names = names if hasattr(names, "indices") else names.dictionary_encode()
        known = names.dictionary.to_pylist()
        if name not in known:
            return {}
        return _series(where(table, to_numpy(names.indices) == known.index(name)), "path")

    def update_to_weight_ratio(self, step: int = -1) -> dict[str, float]:
        """‖update‖ / ‖weight before it‖ of each parameter at a step; left out where the weight is 0."""
        flow = self.flow(step)
        weights, updates = flow.stats(Role.PARAMETER), flow.stats(Role.UPDATE)
        return {
            path: updates[path].norm / weights[path].norm
            for path in updates
            if path in weights and weights[path].norm > 0.0
        }

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """What happened, in order."""
        records = self._tables.read("events").to_pylist()
        return tuple(Event(**record) for record in records)

    def table(self, name: str, columns: Iterable[str] | None = None) -> pa.Table:
        """A whole table as Arrow, or some of its columns.

        Args:
            name: ``flow``, ``scalars``, ``parameters`` or ``events``.
            columns: Which columns to decode; all by default.
        """
        return self._tables.read(name, None if columns is None else list(columns))


@final
class _OneFlow:
    """The tables of a single Flow."""

    location = "memory"

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.metadata = flow.metadata

    def read(self, table: str, columns: list[str] | None = None, step: int | None = None) -> pa.Table:
        """As :meth:`Tables.read`; only ``flow`` has rows."""
        import pyarrow as pa

        text, number = pa.string(), pa.float64()
        empty = {"scalars": {"name": text, "value": number}, "events": {"kind": text, "text": text}}
        empty["parameters"] = {"path": text, **empty["scalars"]}
        if table != "flow":
            fields = {"step": pa.int64(), **empty[table]}
            return pa.schema(list(fields.items())).empty_table()
        rows = self.flow.to_arrow()
        rows = rows.add_column(0, "step", pa.array([0] * rows.num_rows, pa.int64()))
        if step not in (None, 0):
            rows = rows.slice(0, 0)
        return rows if columns is None else rows.select(columns)


def _series(table: pa.Table, key: str) -> dict[str, Series]:
    """A long table, cut by ``key`` and sorted by step."""
    from evenflow.flow.columns import to_numpy

    table = table.select(["step", key, "value"]).unify_dictionaries().combine_chunks()
    column = table[key].combine_chunks()
    encoded = column if hasattr(column, "indices") else column.dictionary_encode()
    steps, values = to_numpy(table["step"]), to_numpy(table["value"])
    codes = to_numpy(encoded.indices)
    found = {}
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        rows = (codes == code).nonzero()[0]
        if len(rows):
            rows = rows[steps[rows].argsort(kind="stable")]
            found[name] = Series(steps[rows], values[rows])
    return found


def _nearby(steps: tuple[int, ...], step: int) -> str:
    if not steps:
        return "It has no Flows at all: nothing was sampled, or it was stopped before the first step ended."
    below = max((s for s in steps if s < step), default=None)
    above = min((s for s in steps if s > step), default=None)
    near = " and ".join(str(s) for s in (below, above) if s is not None)
    return f"The nearest are {near}; run.steps lists all {len(steps)}."
