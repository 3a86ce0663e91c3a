"""Sweeps: one kind of net over a grid of settings, expected and measured.

    sweep("feed-forward", over={"depth": [10, 20, 50], "init": ["default", "he"]}, seeds=4,
          workers=Workers(jobs=-1))

Cells are independent, so they go to as many workers as one likes
(:mod:`evenflow.parallel`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from evenflow.lab.playground import NETS, Net, SettingError
from evenflow.lab.verdict import mean
from evenflow.parallel import Workers
from evenflow.theory import TheoryError


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid.

    Attributes:
        settings: What was varied, and its value here.
        expected: Decades that the gradient gains from the end to the first place, by
            theory; None where there is no closed form.
        measured: The same in one real net for each seed.
    """

    settings: Mapping[str, object]
    expected: float | None
    measured: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the real nets; −inf if in one of them nothing arrives, NaN if none was measured."""
        return mean(self.measured) if self.measured else math.nan


def grid(
    net: str, over: Mapping[str, Sequence[object]], fixed: Mapping[str, object] | None = None
) -> list[tuple[dict[str, object], Net]]:
    """Every combination of the values of ``over``, with its net.

    Raises:
        SettingError: The net or a setting is not known, or a value is outside its range.
    """
    if net not in NETS:
        raise SettingError(f"There is no net {net!r} here. There are: {', '.join(NETS)}.")
    if not over or not all(over.values()):
        raise SettingError("A sweep goes over at least one setting, with at least one value each.")
    points = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    return [(point, NETS[net].of({**(fixed or {}), **point})) for point in points]


def sweep(
    net: str,
    over: Mapping[str, Sequence[object]],
    *,
    fixed: Mapping[str, object] | None = None,
    seeds: int = 3,
    workers: Workers | None = None,
) -> Iterator[Cell]:
    """Go over a grid; cells come as they are done, in the grid's order, the last setting fastest.

    Args:
        net: A key of :data:`~evenflow.lab.playground.NETS`.
        over: Settings and their values.
        fixed: Other settings, the same in every cell.
        seeds: Real nets for each cell; 0 for theory alone.
        workers: Who does it; by default this process.

    Raises:
        SettingError: The net or a setting is not known, or a value is outside its range.
        MissingPackageError: The workers need a package that is not installed.
    """
    points = grid(net, over, fixed)
    totals = (workers or Workers()).map(partial(_totals, seeds=seeds), [one for _, one in points])
    for (settings, _), (expected, measured) in zip(points, totals, strict=True):
        yield Cell(settings, expected, measured)


def _totals(net: Net, *, seeds: int) -> tuple[float | None, tuple[float, ...]]:
    try:
        expected = net.expected().total
    except TheoryError:
        expected = None
    return expected, tuple(net.measured(seed).total for seed in range(seeds))
