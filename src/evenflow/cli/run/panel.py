"""The live panel: the last lines of the terminal, below the script's own output.

The terminal is told to scroll only the lines above (DECSTBM), so whatever the
script prints (progress bars included) goes on as if the window were smaller.
Each frame is one write: save the cursor, draw, restore it. When the panel ends,
the whole window scrolls again.

Colours say how large the gradient of a layer is: columns are steps, the newest at the
right.

References:
    DEC, VT100 User Guide, 1978, DECSTBM, DECSC and DECRC.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from rich.console import Console
from rich.text import Text

from evenflow.cli.run.view import Layer, View, number, thinned
from evenflow.report.bars import ASCII, UNICODE, Glyphs, Scale, sparkline

HEIGHT = 18
"""Lines of the panel at most; half of a small window."""
_SMALLEST = 10
"""Lines of the smallest window that is shared."""
_COLOURS = (
    "#1b1245", "#3b0f70", "#641a80", "#8c2981", "#b73779",
    "#de4968", "#f7705c", "#fe9f6d", "#fecf92", "#fcfdbf",
)  # fmt: skip
"""Ten steps of matplotlib's magma, dark to bright, which also reads in grey."""
_NAME = 28


@final
class Terminal:
    """The lowest lines of a terminal, reserved.

    Args:
        descriptor: File descriptor of the terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = (0, 0)
        self._open = False

    def draw(self, lines: list[str], height: int) -> None:
        """Show ready lines at the bottom."""
        size = os.get_terminal_size(self._descriptor)
        columns, rows = size
        if rows < _SMALLEST:  # nothing would be left to the script; or the size is not known (0)
            return
        text = ""
        if not self._open:
            text += "\n" * height + f"\x1b[{height}A"  # make room below the cursor
        if not self._open or size != self._size:
            text += f"\x1b7\x1b[1;{rows - height}r\x1b8"
            self._open, self._size = True, (columns, rows)
        text += "\x1b7"
        for place in range(height):
            line = lines[place] if place < len(lines) else ""
            text += f"\x1b[{rows - height + 1 + place};1H{line}\x1b[0m\x1b[K"
        self._write(text + "\x1b8")

    def close(self) -> None:
        """Give the lines back and clear them."""
        if self._open:
            self._open = False
            _, rows = self._size
            self._write(f"\x1b7\x1b[1;{rows}r\x1b8\x1b[J")

    def _write(self, text: str) -> None:
        os.write(self._descriptor, text.encode(sys.stderr.encoding or "utf-8", "replace"))


def panel(view: View, title: str, findings: Sequence[str], console: Console, height: int) -> list[str]:
    """The panel as lines with their colours.

    Args:
        view: What to show.
        title: What runs.
        findings: What was found so far, one line each.
        console: The terminal; its width, colours and encoding are respected.
        height: Lines.
    """
    width = console.width
    paper = _Paper(ASCII if console.options.ascii_only else UNICODE, console.color_system is not None)
    glyphs = paper.glyphs
    lines = [Text(("─" if glyphs.unicode else "-") * width, "dim"), _head(view, title)]
    lines += [_loss(name, values, width, glyphs) for name, values in list(view.losses.items())[:2]]
    notes = [Text(glyphs.text(f"{glyphs.warning} {text}"), "yellow") for text in findings[-3:]]
    room = height - len(lines) - len(notes) - 1
    known = [level for layer in view.layers for level in layer.levels if level is not None]
    levels = [level for level in known if level != math.inf]
    if room >= 2 and levels:
        scale = Scale.of(levels, len(_COLOURS))
        lines.append(_legend(view, scale, paper))
        columns = max(width - _NAME - 12, 8)
        lines += [_row(layer, scale, paper, columns) for layer in thinned(view.layers, room)]
    elif room >= 1:
        lines.append(Text("waiting for the first gradients", "dim"))
    return [_rendered(line, console) for line in [*lines, *notes]]


@dataclass(frozen=True, slots=True)
class _Paper:
    """What can be drawn with."""

    glyphs: Glyphs
    colours: bool

    def cell(self, level: float | None, scale: Scale) -> tuple[str, str]:
        """One step of one layer, and its style: colours say the decade, or else how dense it is."""
        if level is None:
            return " ", ""
        if level == math.inf:
            return "!", "bold red"
        place = min(int(scale.cell(level)), len(_COLOURS) - 1)
        if self.colours and self.glyphs.unicode:
            return self.glyphs.full, _COLOURS[place]
        return ("·░░▒▒▓▓███" if self.glyphs.unicode else ".::-==+*##")[place], ""


def _head(view: View, title: str) -> Text:
    text = Text.assemble(("evenflow ", "bold cyan"), (title, "bold"), f"   step {view.step}")
    text.append(f"   gradient norm {number(view.norm)}")
    text.append(f"   watching takes {view.cost:.1%}", "dim")
    return text


def _loss(name: str, values: Sequence[float], width: int, glyphs: Glyphs) -> Text:
    finite = [value for value in values if math.isfinite(value)]
    text = Text(f"{name:{_NAME}}", "bold")
    if finite:
        low, high = min(finite), max(finite)
        scale = Scale(low, high if high > low else low + 1.0, max(width - _NAME - 12, 8))
        text.append(sparkline([v if math.isfinite(v) else None for v in values], scale, glyphs), "cyan")
    text.append(f" {number(values[-1])}", "bold" if math.isfinite(values[-1]) else "bold red")
    return text


def _legend(view: View, scale: Scale, paper: _Paper) -> Text:
    text = Text(f"{'gradient norm by layer':{_NAME}}", "bold")
    since = f"{len(view.steps)} looks since step {view.steps[0]}   "
    text.append(f"{since}{paper.glyphs.power_of_ten(int(scale.low))} ", "dim")
    for place in range(scale.width):
        level = scale.low + (place + 0.5) / scale.width * (scale.high - scale.low)
        text.append(*paper.cell(level, scale))
    text.append(f" {paper.glyphs.power_of_ten(int(scale.high))}", "dim")
    return text


def _row(layer: Layer, scale: Scale, paper: _Paper, columns: int) -> Text:
    room = _NAME - 2
    name = layer.name
    if len(name) >= room:  # the end tells layers apart
        name = paper.glyphs.ellipsis + name[len(paper.glyphs.ellipsis) + 1 - room :]
    text = Text(f"  {name:{room}}")
    for level in layer.levels[-columns:]:
        text.append(*paper.cell(level, scale))
    last = layer.levels[-1] if layer.levels else None
    if last is None:
        text.append(" none", "dim")
    elif last == math.inf:
        text.append(" not finite", "bold red")
    else:
        text.append(f" {10.0**last:.0e}", "dim")
    return text


def _rendered(line: Text, console: Console) -> str:
    """With escape codes, cut to the width, and without a line's end."""
    line.truncate(console.width, overflow="crop")
    with console.capture() as captured:
        console.print(line, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
    return captured.get()
