"""Pictures made of characters: bars, floating bars, sparklines, and an axis in decades.

Everything returns plain strings of a fixed width, so that a picture is tested
without a terminal. An eighth of a cell is the resolution where the terminal
knows Unicode's block elements; on an ASCII terminal it is one cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evenflow.report.text import power_of_ten

_PLAIN = {
    "×": "x",
    "÷": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "·": "*",
    "•": "*",
    "…": "...",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≠": "!=",
    "±": "+/-",
    "‖": "|",
    "∂": "d",
    "√": "sqrt",
    "∞": "inf",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "′": "'",
    "¼": "1/4",
    "½": "1/2",
    "²": "^2",
    "³": "^3",
    "ε": "eps",
    "σ": "sigma",
    "Σ": "sum",
    "χ": "chi",
    "β": "beta",
}
"""Spelling in ASCII of what evenflow's own texts use; anything else is written ``\\uXXXX``."""

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that a terminal can show."""

    unicode: bool
    full: str
    parts: str
    """Fractions of a full cell, growing; empty if there are none."""
    spark: str
    """Heights of a sparkline, growing."""
    edge: str
    tick: str
    diamond: str
    flag: str
    dots: str
    ellipsis: str
    bullet: str
    error: str
    warning: str
    ok: str

    def text(self, text: str) -> str:
        """The text in characters that the terminal has."""
        if self.unicode or text.isascii():
            return text
        plain = "".join(_PLAIN.get(character, character) for character in text)
        return plain.encode("ascii", "backslashreplace").decode("ascii")

    def power_of_ten(self, exponent: int) -> str:
        """A tick of a log axis."""
        return power_of_ten(exponent) if self.unicode or exponent == 0 else f"1e{exponent}"


UNICODE = Glyphs(
    True, "█", "▏▎▍▌▋▊▉", "▁▂▃▄▅▆▇█", "│", "╷", "◆", "◀", "⋮", "…", "•", "✗", "▲", "✓"
)  # fmt: skip
ASCII = Glyphs(False, "#", "", "_.-=+*#", "|", "|", "o", "<", ":", "...", "*", "x", "!", "ok")


@dataclass(frozen=True, slots=True)
class Scale:
    """A log axis from ``low`` to ``high`` decades, ``width`` cells wide."""

    low: float
    high: float
    width: int

    @classmethod
    def of(cls, levels: Sequence[float], width: int, decades: int = 4) -> Scale:
        """The scale in whole decades around some levels, at least ``decades`` long.

        A short axis would make a healthy factor of two look like a cliff.
        """
        low = math.floor(min(levels, default=-decades))
        high = max(math.ceil(max(levels, default=0)), low + 1)
        return cls(min(low, high - decades), high, width)

    def cell(self, level: float) -> float:
        """Where a level lies, in cells from the left; outside levels lie on the edge."""
        share = (level - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0) * self.width

    def ticks(self) -> tuple[int, ...]:
        """Whole decades to label, at least 9 cells apart."""
        first, last = math.ceil(self.low), math.floor(self.high)
        room = max(self.width // 9, 1)
        step = next((s for s in _STEPS if (last - first) / s <= room), last - first or 1)
        return tuple(tick for tick in range(first, last + 1) if tick % step == 0)


def bar(scale: Scale, level: float, glyphs: Glyphs) -> str:
    """A bar from the left edge to ``level``; the smallest level still shows a trace."""
    return span(scale, scale.low, level, glyphs) or (glyphs.parts[:1] or glyphs.edge)


def span(scale: Scale, start: float, stop: float, glyphs: Glyphs) -> str:
    """A floating bar between two levels, given in any order; blanks before it, none after.

    Block elements fill cells from the left, so only the right end has a fraction.
    """
    left, right = sorted((scale.cell(start), scale.cell(stop)))
    first = round(left)
    cells = max(right - first, 0.0)
    whole = int(cells)
    fraction = int((cells - whole) * (len(glyphs.parts) + 1)) if glyphs.parts else round(cells - whole)
    tail = (glyphs.parts[fraction - 1] if glyphs.parts else glyphs.full) if fraction else ""
    drawn = glyphs.full * whole + tail
    return " " * first + drawn if drawn else ""


def axis(scale: Scale, glyphs: Glyphs) -> str:
    """Ticks at whole decades with their labels to the right; to the left where the axis ends."""
    line = ""
    for tick in scale.ticks():
        cell = min(int(scale.cell(tick)), scale.width - 1)
        label = glyphs.tick + glyphs.power_of_ten(tick)
        if cell + len(label) > scale.width:
            label = label[1:] + label[0]
            cell -= len(label) - 1
        if cell > len(line) or not line:
            line = line.ljust(cell) + label
    return line


def sparkline(levels: Sequence[float | None], scale: Scale, glyphs: Glyphs) -> str:
    """Heights on the scale, thinned to its width; a level that is none is a blank."""
    count = len(levels)
    width = min(count, scale.width)
    picked = [levels[round(i * (count - 1) / max(width - 1, 1))] for i in range(width)]
    top = len(glyphs.spark) - 1
    return "".join(
        " " if level is None else glyphs.spark[round(scale.cell(level) / scale.width * top)]
        for level in picked
    )
