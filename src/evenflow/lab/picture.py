"""Pictures as data: curves or a map, with words for those who see it first or cannot see it.

Nothing here draws. A renderer turns these into marks and decides nothing: what
is shown, in which order and on which scale is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from evenflow.lab.verdict import interval, mean


class Origin(StrEnum):
    """Where a curve comes from."""

    MEASURED = "measured"
    EXPECTED = "expected"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line.

    Attributes:
        name: What it belongs to; measured and expected curves of one name share a colour.
        x: Places.
        y: Values; None where there is none, which leaves a gap.
        origin: Measured (drawn through) or expected (dashed).
        low: Lower edge of a band around the line, if there is one.
        high: Upper edge.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    origin: Origin = Origin.MEASURED
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.x, self.y, self.low, self.high) if part is not None}
        assert len(lengths) == 1, f"{self.name}: parts of a curve differ in length: {sorted(lengths)}"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        title: What it shows, with the unit.
        decades: Whether values are log10 of what the title names.
        log: Whether values, all positive, go on a logarithmic scale.
    """

    title: str
    decades: bool = False
    log: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over one pair of axes.

    Attributes:
        name: Short and unique within the experiment.
        title: Heading.
        reading: How to read it, for somebody who sees it for the first time.
        x: Horizontal axis.
        y: Vertical axis.
        curves: What is drawn.
    """

    name: str
    title: str
    reading: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One value at every point of a grid, with curves over it.

    Attributes:
        name: Short and unique within the experiment.
        title: Heading.
        reading: How to read it.
        x: Horizontal axis.
        y: Vertical axis.
        value: Name of the value; colours part at 0.
        columns: Places on x, ascending and evenly spaced.
        rows: Places on y, likewise.
        values: For each row, the value in each column.
        curves: Lines over the map.
    """

    name: str
    title: str
    reading: str
    x: Axis
    y: Axis
    value: str
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    curves: tuple[Curve, ...] = ()


Picture: TypeAlias = Lines | HeatMap


def over_seeds(name: str, x: Iterable[float], samples: Sequence[Sequence[float]]) -> Curve:
    """The mean over seeds with its confidence band.

    Args:
        name: Of the curve.
        x: Places.
        samples: For each seed, the value at each place.
    """
    columns = list(zip(*samples, strict=True))
    centres = [mean(column) for column in columns]
    bands = [interval(column) or (centre, centre) for column, centre in zip(columns, centres, strict=True)]
    return Curve(
        name,
        tuple(x),
        tuple(centres),
        low=tuple(low for low, _ in bands),
        high=tuple(high for _, high in bands),
    )


def beside(
    name: str, x: Sequence[float], samples: Sequence[Sequence[float]], expected: Iterable[float]
) -> tuple[Curve, Curve]:
    """The mean over seeds with its band, and what was expected of it.

    Args:
        name: Of both curves.
        x: Places.
        samples: For each seed, the value at each place.
        expected: The value expected at each place.
    """
    return over_seeds(name, x, samples), Curve(name, tuple(x), tuple(expected), Origin.EXPECTED)
