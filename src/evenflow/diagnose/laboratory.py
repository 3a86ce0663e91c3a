"""Pictures of the lab for the pages of rules and causes.

They are kept in ``pictures/`` (drawings, and their curves in ``index.json``), so that
neither a page nor the documentation trains anything; ``docs/pictures.py`` runs the
experiments and writes them. Which experiment belongs to which page stands in the experiment's
own file (``explains``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from evenflow.diagnose.text import number

LAB_HEADING = "## In the lab"
"""Heading of the part of a page that shows the picture."""

_BARS = "▁▂▃▄▅▆▇█"
_LINES = 6
"""Curves that a sketch shows at most."""


@dataclass(frozen=True, slots=True)
class Sketched:
    """One measured curve, thinned.

    Attributes:
        name: What it belongs to.
        x: First and last place.
        y: Values at even places, in the order of x; None where there is none.
    """

    name: str
    x: tuple[float, float]
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LabPicture:
    """A stored picture.

    Attributes:
        experiment: Its name on the command line.
        title: Of the picture.
        question: That the experiment asks.
        reading: How to read the picture.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        file: Name of the drawing in ``pictures/``.
        curves: In short.
    """

    experiment: str
    title: str
    question: str
    reading: str
    x: str
    y: str
    file: str
    curves: tuple[Sketched, ...]

    def svg(self) -> str:
        """The drawing."""
        return files("evenflow.diagnose").joinpath("pictures", self.file).read_text(encoding="utf-8")

    def sketch(self) -> str:
        """The curves as rows of bars on one scale, for a terminal."""
        shown = self.curves[:_LINES]
        values = [value for curve in shown for value in curve.y if value is not None]
        low, high = min(values), max(values)
        width = max(len(curve.name) for curve in shown)
        rows = [f"{curve.name:{width}}  {_bars(curve.y, low, high)}  {_ends(curve.y)}" for curve in shown]
        first, last = shown[0].x
        return "\n".join([f"{self.y}, {self.x} {number(first)} to {number(last)}", *rows])


@cache
def pictures() -> dict[str, LabPicture]:
    """From the name of a rule or cause to its picture."""
    text = files("evenflow.diagnose").joinpath("pictures", "index.json").read_text(encoding="utf-8")
    record = json.loads(text)
    drawn = {
        key: LabPicture(
            **{
                **one,
                "curves": tuple(
                    Sketched(curve["name"], tuple(curve["x"]), tuple(curve["y"])) for curve in one["curves"]
                ),
            }
        )
        for key, one in record["pictures"].items()
    }
    return {page: drawn[key] for page, key in record["pages"].items()}


def picture_of(name: str) -> LabPicture | None:
    """The picture of a rule or cause; None if the lab has no experiment on it."""
    return pictures().get(name)


def _bars(values: Sequence[float | None], low: float, high: float) -> str:
    span = (high - low) or 1.0
    return "".join(
        " " if value is None else _BARS[min(int((value - low) / span * len(_BARS)), len(_BARS) - 1)]
        for value in values
    )


def _ends(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{number(known[0])} → {number(known[-1])}" if known else ""
