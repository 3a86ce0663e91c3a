"""Levels by layer and by time step.

A *profile* has one reading for each place of the Flow, a *curve* one level for
each time step of a recurrent state. A level is a log10 RMS; a tensor that has
none is named by its :class:`State`, not dropped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

from evenflow.flow import Flow, Role, Row, Stats, Status
from evenflow.flow.budget import block_of
from evenflow.report.figures.waterfall import kinds_by_path

_ACTIVATIONS = (Role.ACTIVATION, Role.ACTIVATION_GRADIENT)


class State(StrEnum):
    """What can be said of a level."""

    FINITE = "finite"
    ZERO = "zero"
    """Every finite entry is exactly zero."""
    NON_FINITE = "non_finite"
    """Some entries are NaN or infinite; the level is that of the others, if any."""
    ABSENT = "absent"
    """Nothing arrived there."""


class View(StrEnum):
    """What one line of a shortened profile stands for."""

    ALL = "layer"
    HOLDERS = "layer with parameters"
    BLOCKS = "block"


@dataclass(frozen=True, slots=True)
class Reading:
    """The level of one place.

    Attributes:
        place: Key of the place, as in :meth:`evenflow.flow.Flow.stats`.
        path: Its module path.
        kind: Class of its module, or name of its op.
        state: Whether there is a level.
        log10_rms: log10 of the root mean square; None where there is none.
        nonfinite: Share of entries that are NaN or infinite.
        half_width: Half-width of the predicted interval in decades, if known.
        status: Why nothing arrived, for ``State.ABSENT``.
        main: Whether it belongs to the main line: places on the chain, through which
            all of the gradient passes; of the parameters, those with two axes or more.
    """

    place: str
    path: str
    kind: str
    state: State
    log10_rms: float | None = None
    nonfinite: float = 0.0
    half_width: float | None = None
    status: Status = Status.OK
    main: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """Levels of one recurrent state over time.

    Attributes:
        state: Label of the state, e.g. ``lstm:hidden_l0``.
        points: (time step, state of the level, log10 RMS or None), by time.
    """

    state: str
    points: tuple[tuple[int, State, float | None], ...]


def profile(flow: Flow, role: Role) -> tuple[Reading, ...]:
    """Readings of one role for every place, in forward order.

    For the roles of activations the places are those of both activations and
    their gradients, so that a place which no gradient reached is in the list.
    """
    here = flow.by_place(role)
    if role not in _ACTIVATIONS:
        return tuple(_reading(place, rows, rows, main=len(rows[0].shape) > 1) for place, rows in here.items())
    others = [flow.by_place(other) for other in _ACTIVATIONS if other is not role]
    known = {place: rows for table in (*others, here) for place, rows in table.items()}
    chain = {row.order for row in flow.chain(Role.ACTIVATION_GRADIENT)}
    return tuple(
        _reading(
            place,
            here.get(place, []),
            known[place],
            main=not chain or any(row.order in chain for row in known[place]),
        )
        for place in sorted(known, key=lambda place: known[place][0].order)
    )


def main_places(flow: Flow, role: Role, limit: int) -> tuple[View, tuple[Reading, ...]]:
    """The finest view of a profile that has at most ``limit`` places.

    The coarsest one, :attr:`View.BLOCKS`, may still be longer than the limit.
    """
    readings = profile(flow, role)
    if len(readings) <= limit:
        return View.ALL, readings
    owners = {row.site.path.rpartition(".")[0] for row in flow.select(Role.PARAMETER)}
    holders = tuple(reading for reading in readings if reading.path in owners)
    blocks = _blocks(flow, role, readings)
    if holders and (len(holders) <= limit or len(holders) <= len(blocks)):
        return View.HOLDERS, holders
    return View.BLOCKS, blocks


@dataclass(frozen=True, slots=True)
class Omission:
    """Readings left out of the middle of a list, and what they lie between."""

    readings: tuple[Reading, ...]

    @property
    def span(self) -> tuple[float, float] | None:
        """Lowest and highest log10 RMS among them; None if none has a level."""
        levels = [reading.log10_rms for reading in self.readings if reading.log10_rms is not None]
        return (min(levels), max(levels)) if levels else None

    def count(self, state: State) -> int:
        """How many are in a state."""
        return sum(reading.state is state for reading in self.readings)


def abridge(
    readings: Sequence[Reading], limit: int, keep: Collection[str] = ()
) -> tuple[Reading | Omission, ...]:
    """Shorten a list in the middle to about ``limit`` lines.

    Half of the lines go to both ends; the rest goes to the places of ``keep`` and
    to those where the state changes, which are what a reader looks for.
    """
    if len(readings) <= limit:
        return tuple(readings)
    end = limit // 4
    shown = {*range(end), *range(len(readings) - end, len(readings))}
    striking = [
        position
        for position in range(end, len(readings) - end)
        if readings[position].place in keep or readings[position].state is not readings[position - 1].state
    ]
    shown.update(striking[: 2 * end])
    lines: list[Reading | Omission] = []
    for position, reading in enumerate(readings):
        if position in shown:
            lines.append(reading)
        elif lines and isinstance(lines[-1], Omission):
            lines[-1] = Omission((*lines[-1].readings, reading))
        else:
            lines.append(Omission((reading,)))
    return tuple(lines)


def curves(flow: Flow, role: Role = Role.ACTIVATION_GRADIENT) -> tuple[Curve, ...]:
    """One curve over time for every recurrent state."""
    return tuple(
        Curve(state, tuple((time, *_level(stats)) for time, stats in sorted(steps.items())))
        for state, steps in flow.time_profile(role).items()
    )


def _blocks(flow: Flow, role: Role, readings: Sequence[Reading]) -> tuple[Reading, ...]:
    """The output of every numbered block; of other neighbours with a common parent, the last.

    Only a numbered block runs in one stretch; a parent such as ``transformer``
    has children on both sides of its blocks.
    """
    outputs: dict[str, list[Row]] = {}
    for row in flow.select(role):
        for module in row.output_of:
            outputs.setdefault(module.path, []).append(row)
    kinds = kinds_by_path(flow)
    blocks: list[Reading] = []
    seen: set[str] = set()
    for block, run in groupby(readings, key=lambda reading: block_of(reading.path)):
        *_, last = run
        numbered = block.rpartition(".")[2].isdigit()
        own = outputs.get(block, []) if numbered and block not in seen else []
        seen.add(block)
        if own:
            last = replace(_reading(block, own, own), place=block, path=block, kind=kinds.get(block, ""))
        blocks.append(last)
    return tuple(blocks)


def _reading(place: str, rows: Sequence[Row], known: Sequence[Row], *, main: bool = True) -> Reading:
    """One reading from the rows of its role; ``known``: rows that tell what the place is."""
    row = known[0]
    made = [module.path for module in row.output_of if module.path == place]
    path = row.site.path if not made else place
    if row.site.op == "parameter":
        path = row.site.path.rpartition(".")[0]
    kind = row.module_type if row.site.path == place or row.site.op == "parameter" else row.site.op
    parts = [r.stats for r in rows if r.stats is not None]
    if not parts:
        why = next((r.status for r in rows if r.status is not Status.OK), Status.DETACHED)
        return Reading(place, path, kind, State.ABSENT, status=why, main=main)
    stats = Stats.merge_all(parts)
    state, level = _level(stats)
    return Reading(
        place=place,
        path=path,
        kind=kind,
        state=state,
        log10_rms=level,
        nonfinite=stats.nonfinite_count / stats.count if stats.count else 0.0,
        half_width=max((r.half_width for r in rows if r.half_width is not None), default=None),
        main=main,
    )


def _level(stats: Stats) -> tuple[State, float | None]:
    level = stats.log10_rms
    finite = level if math.isfinite(level) else None
    if stats.nonfinite_count or math.isnan(stats.mean_square) or math.isinf(stats.mean_square):
        return State.NON_FINITE, finite
    return (State.FINITE, finite) if finite is not None else (State.ZERO, None)
