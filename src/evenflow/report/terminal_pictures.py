"""The pictures of the terminal report: bars by layer, the waterfall, time steps.

Each function gives the lines of one picture as rich renderables. Text from the
user goes through :meth:`Paper.text` into ``rich.text.Text``, which reads no
markup.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from evenflow.diagnose.finding import Finding, Severity
from evenflow.flow import Role
from evenflow.report.bars import Glyphs, Scale, axis, bar, span, sparkline
from evenflow.report.content import ReportContent, flagged
from evenflow.report.figures import (
    Curve,
    Omission,
    Reading,
    State,
    View,
    abridge,
    curves,
    main_places,
    profile,
    waterfall,
)
from evenflow.report.text import (
    clip,
    decades,
    percent,
    place_name,
    plural,
    printable,
    scientific,
    shorten,
    step_name,
)

COLOUR: dict[Severity | None, str] = {
    Severity.ERROR: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.NOTE: "bold blue",
    None: "bold green",
}

_LAYERS, _STEPS, _STATES = 32, 20, 12
"""Lines of each picture before it is shortened."""


@dataclass(frozen=True, slots=True)
class Paper:
    """What the report is printed on.

    Attributes:
        width: Columns.
        glyphs: Characters that the terminal can show.
        full: Whether nothing may be shortened.
        see_all: How the reader gets what was left out.
    """

    width: int
    glyphs: Glyphs
    full: bool
    see_all: str

    def text(self, text: str) -> str:
        """Any text in characters that are safe and that the terminal has."""
        return self.glyphs.text(printable(text))

    def column(self, text: str, width: int, *, cut: Callable[[str, int, str], str] = shorten) -> str:
        """A cell of a column: cut, or filled with blanks to ``width``."""
        short = cut(self.text(text), width, self.glyphs.ellipsis)
        return short + " " * (width - cell_len(short))

    def column_width(self, texts: Sequence[str], most: int) -> int:
        """Width of a column that holds the longest text, but at most ``most``."""
        return min(max((cell_len(self.text(text)) for text in texts), default=0), most)


def title(paper: Paper, text: str, note: str = "") -> Iterator[RenderableType]:
    """A heading with a line that says how to read what follows."""
    yield ""
    yield Text(text, "bold underline" if paper.glyphs.unicode else "bold")
    if note:
        yield Text(paper.text(note), "dim")


def layers(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    """A bar for each layer: the gradient at its output, the prediction as a mark on it."""
    everything = profile(content.flow, Role.ACTIVATION_GRADIENT)
    if not everything:
        return
    limit = len(everything) if paper.full else _LAYERS
    view, readings = main_places(content.flow, Role.ACTIVATION_GRADIENT, limit)
    predicted = profile(content.predicted, Role.ACTIVATION_GRADIENT) if content.predicted else ()
    overlay = {reading.place: reading for reading in predicted}
    marks = flagged(content.diagnosis.findings, {reading.place: reading.path for reading in readings})
    lines = abridge(readings, limit, marks)

    legend = f"; {paper.glyphs.diamond} predicted" if overlay else ""
    how = f"RMS at the output of each, log scale, input first{legend}"
    yield from title(paper, f"Gradient by {view}", how)
    shown = [line for line in lines if isinstance(line, Reading)]
    names = paper.column_width([place_name(reading.place) for reading in shown], paper.width // 3)
    kinds = paper.column_width([reading.kind for reading in shown], paper.width // 6)
    flags = max((len(paper.text(finding.code)) + 3 for finding in marks.values()), default=0)
    left = names + kinds + 15
    levels = [r.log10_rms for r in (*everything, *predicted) if r.log10_rms is not None]
    floor = min(levels, default=0.0) - 1.0  # so that the smallest level has a bar too
    scale = Scale.of([*levels, floor], paper.width - left - flags)
    yield Text(" " * left + axis(scale, paper.glyphs), "dim")
    for line in lines:
        if isinstance(line, Omission):
            yield _omission(line, paper)
            continue
        text = Text("  " + paper.column(place_name(line.place), names))
        text.append("  " + paper.column(line.kind, kinds, cut=clip), "dim")
        text.append(f" {_value(line):>8} ")
        text.append(paper.glyphs.edge, "dim")
        finding = marks.get(line.place)
        text.append_text(_bar(line, overlay.get(line.place), scale, finding, paper))
        if finding is not None:
            text.append(" " * (paper.width - flags - cell_len(text.plain)))
            text.append(f" {paper.glyphs.flag} {paper.text(finding.code)}", COLOUR[finding.severity])
        yield text
    if view is not View.ALL:
        where = "inside the blocks" if view is View.BLOCKS else "without parameters"
        rest = f"{plural(len(everything) - len(readings), 'place')} {where} not shown"
        yield Text(f"  {paper.glyphs.dots} {rest}   (all of them: {paper.see_all})", "dim")


def waterfall_bars(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    """A floating bar for each step from the loss to the input, and one for the whole way."""
    fall = waterfall(content.flow, sys.maxsize if paper.full else _STEPS)
    if not fall.steps:
        return
    how = "norm, log scale, loss first; each step's gain in decades (1 = a factor of 10)"
    yield from title(paper, "Gradient from the loss back to the input", how)
    steps = [
        (step_name(s.first, s.last, s.links), s.kind, s.log10_before, s.log10_after, s.log10_gain)
        for s in fall.steps
    ]
    worst = min(fall.steps, key=lambda step: step.log10_gain)
    steps.append(("in all", "", fall.steps[0].log10_before, fall.steps[-1].log10_after, fall.total))
    names = paper.column_width([name for name, *_ in steps], paper.width // 3)
    kinds = paper.column_width([kind for _, kind, *_ in steps], paper.width // 6)
    left = names + kinds + 16
    levels = [level for *_, before, after, _ in steps for level in (before, after) if math.isfinite(level)]
    scale = Scale.of(levels, paper.width - left)
    yield Text(" " * left + axis(scale, paper.glyphs), "dim")
    for name, kind, before, after, gain in steps:
        striking = name == "in all" or (gain == worst.log10_gain < 0 and len(fall.steps) > 2)
        text = Text("  " + paper.column(name, names), "bold" if striking else "")
        text.append("  " + paper.column(kind, kinds, cut=clip), "not bold dim")
        text.append(f" {paper.text(decades(gain)):>9} ")
        text.append(paper.glyphs.edge, "not bold dim")
        start, stop = (scale.low if level == -math.inf else level for level in (before, after))
        drawn = span(scale, start, stop, paper.glyphs)
        place = min(int(scale.cell(stop)), scale.width - 1)
        text.append(drawn or " " * place + paper.glyphs.edge, "not bold red" if gain < 0 else "not bold blue")
        yield text
    if len(fall.shares) > 1:
        parts = (f"{s.kind} ({s.links}) {decades(s.log10_gain)}" for s in fall.shares)
        yield Padding(Text.assemble(("by kind  ", "dim"), paper.text("   ".join(parts))), (0, 0, 0, 2))


def time_steps(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    """A sparkline over time for each recurrent state."""
    states = curves(content.flow)
    if not states:
        return
    yield from title(
        paper,
        "Gradient by time step",
        "RMS of the gradient at the recurrent state, log scale; first step left",
    )
    shown = states if paper.full else states[:_STATES]
    names = paper.column_width([curve.state for curve in shown], paper.width // 3)
    levels = [level for curve in states for *_, level in curve.points if level is not None]
    scale = Scale.of(levels, paper.width - names - 36)
    for curve in shown:
        yield _curve(curve, names, scale, paper)
    if len(shown) < len(states):
        yield Text(
            f"  {paper.glyphs.dots} {len(states) - len(shown)} more   (all of them: {paper.see_all})", "dim"
        )


def _bar(
    reading: Reading, predicted: Reading | None, scale: Scale, finding: Finding | None, paper: Paper
) -> Text:
    colour = "cyan" if finding is None else COLOUR[finding.severity].removeprefix("bold ")
    drawn = "" if reading.log10_rms is None else bar(scale, reading.log10_rms, paper.glyphs)
    if reading.state is State.NON_FINITE:
        words = f" {percent(reading.nonfinite)} NaN or infinite"
        return Text.assemble((drawn[: scale.width - len(words)], colour), (words, "bold red"))
    if reading.state is State.ZERO:
        return Text(" all zero", "bold red")
    if reading.state is State.ABSENT:
        return Text(" no gradient arrives", "dim")
    if predicted is None or predicted.log10_rms is None:
        return Text(drawn, colour)
    mark = min(int(scale.cell(predicted.log10_rms)), scale.width - 1)
    line = drawn.ljust(mark + 1)
    return Text.assemble((line[:mark], colour), (paper.glyphs.diamond, "magenta"), (line[mark + 1 :], colour))


def _value(reading: Reading) -> str:
    if reading.log10_rms is not None:
        return scientific(reading.log10_rms)
    return {State.ZERO: "0", State.NON_FINITE: "nan"}.get(reading.state, "-")


def _omission(omission: Omission, paper: Paper) -> Text:
    span = omission.span
    zeros, others = omission.count(State.ZERO), omission.count(State.NON_FINITE)
    parts = [
        f"{len(omission.readings)} more",
        *([f"{zeros if span else ''} all zero".strip()] if zeros else []),
        *([f"{others} with NaN or infinite entries"] if others else []),
        *([f"{scientific(span[0])} to {scientific(span[1])}"] if span else []),
    ]
    return Text(f"  {paper.glyphs.dots} {', '.join(parts)}   (all of them: {paper.see_all})", "dim")


def _curve(curve: Curve, names: int, scale: Scale, paper: Paper) -> Text:
    (first, *_, start), (last, *_, stop) = curve.points[0], curve.points[-1]
    text = Text("  " + paper.column(curve.state, names))
    text.append(f"  t={first:<4} {_level(start):>8} ", "dim")
    text.append(sparkline([level for *_, level in curve.points], scale, paper.glyphs), "cyan")
    text.append(f" {_level(stop):<8} t={last}", "dim")
    return text


def _level(level: float | None) -> str:
    return "0" if level is None else scientific(level)
