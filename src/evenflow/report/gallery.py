"""The pictures of one report: each with its specification, a summary in words, and its numbers.

The same list feeds the HTML page and the files of :mod:`evenflow.report.pictures`.
A picture without anything to show is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evenflow.flow import Flow, Role, Series
from evenflow.report.captions import (
    BESIDE_THE_LINE,
    INTERVAL,
    NOT_FINITE,
    PREDICTED,
    PREDICTED_BAND,
    READINGS,
    TITLES,
    PictureName,
)
from evenflow.report.charts import (
    Spec,
    exponent_map,
    loss_chart,
    profile_chart,
    spectrum_chart,
    time_chart,
    training_map,
    waterfall_chart,
)
from evenflow.report.charts.profile import STATE_WORDS
from evenflow.report.charts.spectrum import SHOWN_FORMATS
from evenflow.report.content import ReportContent, flagged
from evenflow.report.figures import (
    Curve,
    Reading,
    State,
    curves,
    exponents_by_place,
    history,
    losses,
    profile,
    spectrum,
    waterfall,
)
from evenflow.report.text import (
    decades,
    factor,
    percent,
    place_name,
    plural,
    printable,
    scientific,
    step_name,
    words,
)

_STEPS, _COLUMNS = 40, 60
"""Bars of the waterfall and columns of the exponent map that stay readable on a page."""

_ROLES = {
    PictureName.GRADIENT: Role.ACTIVATION_GRADIENT,
    PictureName.PARAMETER_GRADIENT: Role.PARAMETER_GRADIENT,
    PictureName.ACTIVATION: Role.ACTIVATION,
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers as a table of text."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture.

    Attributes:
        name: Which one.
        spec: The Vega-Lite specification.
        summary: What it shows, in a sentence or two, for those who cannot see it.
        numbers: The same as a table.
        notes: Sentences that this picture adds to the reading guide of its name.
        aside: A short table that stands beside the picture, if any.
    """

    name: PictureName
    spec: Spec
    summary: str
    numbers: Numbers
    notes: tuple[str, ...] = ()
    aside: Numbers | None = None

    @property
    def title(self) -> str:
        """Its heading."""
        return TITLES[self.name]

    @property
    def reading(self) -> str:
        """How to read it."""
        return " ".join((READINGS[self.name], *self.notes))


def pictures(content: ReportContent) -> tuple[Picture, ...]:
    """All pictures of a report, the most telling first."""
    return tuple(_pictures(content))


def _pictures(content: ReportContent) -> Iterator[Picture]:
    yield from _loss(content)
    yield from _training(content)
    yield from _profile(content, PictureName.GRADIENT)
    yield from _waterfall(content.flow)
    yield from _time(content)
    yield from _profile(content, PictureName.PARAMETER_GRADIENT)
    yield from _profile(content, PictureName.ACTIVATION)
    yield from _spectrum(content.flow)
    yield from _exponent_map(content.flow)


def _loss(content: ReportContent) -> Iterator[Picture]:
    series = {} if content.run is None else losses(content.run)
    if not series:
        return
    ends = [
        (printable(name), *(f"{value:.4g}" for value in (one.values[0], _lowest(one), one.values[-1])))
        for name, one in series.items()
    ]
    told = "; ".join(f"{name} from {first} to {last}, lowest {least}" for name, first, least, last in ends)
    yield Picture(
        PictureName.LOSS,
        loss_chart(series),
        f"Line chart over training steps: {told}.",
        Numbers(("loss", "first", "lowest", "last"), tuple(ends)),
    )


def _lowest(series: Series) -> float:
    return min((value for value in series.values.tolist() if math.isfinite(value)), default=math.nan)


def _training(content: ReportContent) -> Iterator[Picture]:
    if content.run is None or len(content.run.steps) < 2:
        return
    found = history(content.run, Role.PARAMETER_GRADIENT)
    if not found.cells:
        return
    rows = [
        (place_name(place), *(_level(cell.state, cell.log10_rms) for cell in (cells[0], cells[-1])))
        for place, cells in found.by_place().items()
    ]
    yield Picture(
        PictureName.TRAINING,
        training_map(found),
        f"Map of {plural(len(found.places), 'parameter')} over {plural(len(found.steps), 'sampled step')}.",
        Numbers(("parameter", f"at step {found.steps[0]}", f"at step {found.steps[-1]}"), tuple(rows)),
    )


def _profile(content: ReportContent, name: PictureName) -> Iterator[Picture]:
    role = _ROLES[name]
    readings = profile(content.flow, role)
    if all(reading.state is State.ABSENT for reading in readings):
        return
    predicted = () if content.predicted is None else profile(content.predicted, role)
    predicted = tuple(reading for reading in predicted if reading.log10_rms is not None)
    flags = {}
    if role is not Role.ACTIVATION:
        flags = flagged(content.diagnosis.findings, {r.place: r.path for r in readings})
    quantity = f"RMS of the {'activation' if role is Role.ACTIVATION else 'gradient'}"
    notes = [
        *([] if all(reading.main for reading in readings) else [BESIDE_THE_LINE[name]]),
        *([PREDICTED] if predicted else []),
        *([PREDICTED_BAND] if any(reading.half_width for reading in predicted) else []),
        *([INTERVAL] if any(reading.half_width for reading in readings) else []),
    ]
    yield Picture(
        name,
        profile_chart(readings, predicted, flags, source=content.flow.source, quantity=quantity),
        _profile_summary(readings, role),
        _profile_numbers(content.flow, readings, predicted, role),
        tuple(notes),
    )


def _profile_summary(readings: Sequence[Reading], role: Role) -> str:
    levels = [reading for reading in readings if reading.log10_rms is not None]
    text = f"Line chart of the RMS {words(role)} at {plural(len(readings), 'place')}."
    if levels:
        ends = {
            "First": levels[0],
            "last": levels[-1],
            "smallest": min(levels, key=lambda r: r.log10_rms or 0.0),
            "largest": max(levels, key=lambda r: r.log10_rms or 0.0),
        }
        told = (f"{what}, {place_name(r.place)}: {_rms(r)}" for what, r in ends.items())
        text += f" {'; '.join(told)}."
    for state, what in STATE_WORDS.items():
        count = sum(reading.state is state for reading in readings)
        if state is not State.FINITE and count:
            text += f" At {plural(count, 'place')}: {what}."
    return text


def _profile_numbers(
    flow: Flow, readings: Sequence[Reading], predicted: Sequence[Reading], role: Role
) -> Numbers:
    stats = flow.stats(role)
    other = {reading.place: reading for reading in predicted}
    rows = []
    for reading in readings:
        known = stats.get(reading.place)
        row = [place_name(reading.place), printable(reading.kind) or "–", _rms(reading)]
        if other:
            row.append(_rms(other[reading.place]) if reading.place in other else "–")
        if known is None:
            row += ["–", "–", "–"]
        else:
            row.append("–" if known.abs_max is None else f"{known.abs_max:.1e}")
            row.append("–" if known.zero_fraction is None else percent(known.zero_fraction))
            row.append(percent(reading.nonfinite))
        rows.append(tuple(row))
    columns = ["predicted RMS"] if other else []
    head = ("place", "kind", f"{flow.source} RMS", *columns, "largest", "zeros", "NaN or infinite")
    return Numbers(head, tuple(rows))


def _rms(reading: Reading) -> str:
    if reading.log10_rms is not None:
        return scientific(reading.log10_rms)
    return f"– ({reading.status})" if reading.state is State.ABSENT else STATE_WORDS[reading.state]


def _waterfall(flow: Flow) -> Iterator[Picture]:
    fall = waterfall(flow, _STEPS)
    if not fall.steps:
        return
    notes = []
    if len(fall.steps) < fall.links:
        notes.append(
            f"Neighbours among the {fall.links} {fall.level}s are joined; their number is in brackets."
        )
    if any(stats.nonfinite_count for stats in flow.stats(Role.ACTIVATION_GRADIENT).values()):
        notes.append(NOT_FINITE)
    steps = [(step_name(s.first, s.last, s.links), s) for s in fall.steps]
    worst, step = min(steps, key=lambda item: item[1].log10_gain)
    summary = (
        f"Waterfall of {plural(len(steps), 'step')}; in all {decades(fall.total)} decades "
        f"({factor(fall.total)}). The largest loss is {decades(step.log10_gain)} at {worst}."
    )
    rows = [
        (
            name,
            printable(s.kind) or "–",
            decades(s.log10_gain),
            factor(s.log10_gain),
            printable(s.source or "–"),
        )
        for name, s in steps
    ]
    rows.append(("in all", "", decades(fall.total), factor(fall.total), ""))
    kinds = [
        (printable(s.kind), str(s.links), decades(s.log10_gain), factor(s.log10_gain)) for s in fall.shares
    ]
    yield Picture(
        PictureName.WATERFALL,
        waterfall_chart(fall),
        summary,
        Numbers(("step", "kind", "gain in decades", "as a factor", "source"), tuple(rows)),
        tuple(notes),
        Numbers(("by kind of layer", "number", "gain in decades", "as a factor"), tuple(kinds)),
    )


def _time(content: ReportContent) -> Iterator[Picture]:
    states = curves(content.flow)
    if not states:
        return
    predicted = () if content.predicted is None else curves(content.predicted)
    rows = [
        (printable(curve.state), str(time), _level(state, level))
        for curve in states
        for time, state, level in curve.points
    ]
    yield Picture(
        PictureName.TIME,
        time_chart(states, predicted),
        f"Line chart over time steps. {'; '.join(_curve_summary(curve) for curve in states)}.",
        Numbers(("state", "time step", f"{content.flow.source} RMS"), tuple(rows)),
        (PREDICTED,) if predicted else (),
    )


def _curve_summary(curve: Curve) -> str:
    ends = (
        f"{_level(state, level)} at step {time}" for time, state, level in (curve.points[0], curve.points[-1])
    )
    return f"{printable(curve.state)}: {', '.join(ends)}"


def _level(state: State, level: float | None) -> str:
    return STATE_WORDS[state] if level is None else scientific(level)


def _spectrum(flow: Flow) -> Iterator[Picture]:
    spectra = [found for role in _ROLES.values() if (found := spectrum(flow, role)) is not None]
    if not spectra:
        return
    half = "; ".join(f"{words(s.role)}: {percent(s.lost['float16'][0])}" for s in spectra)
    yield Picture(
        PictureName.SPECTRUM,
        spectrum_chart(spectra),
        f"Histogram of exponents. Shares that become zero in float16: {half}.",
        Numbers(
            ("of", "format", "become zero", "keep fewer digits", "become infinite"),
            tuple(
                (words(s.role), name, *map(percent, s.lost[name])) for s in spectra for name in SHOWN_FORMATS
            ),
        ),
        aside=Numbers(
            ("share that becomes zero", *SHOWN_FORMATS),
            tuple((words(s.role), *(percent(s.lost[name][0]) for name in SHOWN_FORMATS)) for s in spectra),
        ),
    )


def _exponent_map(flow: Flow) -> Iterator[Picture]:
    parts = exponents_by_place(flow, Role.ACTIVATION_GRADIENT, _COLUMNS)
    if len(parts) < 2:
        return
    rows = [
        (
            place_name(a) if a == b else f"{place_name(a)} … {place_name(b)}",
            percent(stats.zero_fraction or 0.0),
            *(percent(stats.underflow_fraction(name) or 0.0) for name in SHOWN_FORMATS),
        )
        for a, b, stats in parts
    ]
    yield Picture(
        PictureName.EXPONENT_MAP,
        exponent_map(parts),
        f"Map of exponents at {plural(len(parts), 'stretch', 'stretches')} of layers; "
        "the table gives the share that each format would lose.",
        Numbers(("place", "exactly zero", *(f"zero in {name}" for name in SHOWN_FORMATS)), tuple(rows)),
    )
