"""A run's history: the level of every place at its sampled steps, and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from evenflow.flow import Role, Run, Series
from evenflow.report.figures.levels import State, profile

T = TypeVar("T")

MOST_STEPS, MOST_PLACES = 80, 60
"""Columns and rows of a map that stay readable on a page."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The level of one place at one step."""

    step: int
    place: str
    state: State
    log10_rms: float | None


@dataclass(frozen=True, slots=True)
class History:
    """Levels of places over steps.

    Attributes:
        steps: Ascending; evenly thinned if the run has more than can be shown.
        places: In forward order, likewise.
        cells: What is known of them, by place and then by step.
    """

    steps: tuple[int, ...]
    places: tuple[str, ...]
    cells: tuple[Cell, ...]

    def by_place(self) -> dict[str, list[Cell]]:
        """The cells of each place, by step."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.place, []).append(cell)
        return found


def history(run: Run, role: Role) -> History:
    """The levels of one role over a run; places beside the main line (biases) are left out."""
    steps = _thinned(run.steps, MOST_STEPS)
    readings = {
        step: {reading.place: reading for reading in profile(run.flow(step), role) if reading.main}
        for step in steps
    }
    places = _thinned(list(dict.fromkeys(place for at in readings.values() for place in at)), MOST_PLACES)
    cells = tuple(
        Cell(step, place, reading.state, reading.log10_rms)
        for place in places
        for step in steps
        if (reading := readings[step].get(place)) is not None
    )
    return History(tuple(steps), tuple(places), cells)


def losses(run: Run) -> dict[str, Series]:
    """The losses that were told: ``loss``, or ``loss/role`` for each role."""
    return {name: series for name, series in run.scalars.items() if name.partition("/")[0] == "loss"}


def _thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spaced, both ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
