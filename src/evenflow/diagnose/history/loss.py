"""The loss over the steps, against its noise: has training learned, stalled, swung, or run away?

Two levels are compared. The *start* is the median of the first values, or the
first value where that is lower by more than noise: a loss that shoots up at once
and comes back has gained nothing. The *end* is the median of the last tenth. Noise
is told from trend by first differences: for independent noise of deviation σ
around a slow trend they have deviation √2·σ, and the median of their absolute
values (times 1.4826) is not moved by a few spikes.

References:
    F. Hampel, "The influence curve and its role in robust estimation", JASA 1974
    (1.4826: the median absolute deviation of a normal distribution is .6745 σ).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import final

import numpy as np

from evenflow.diagnose.history.grid import Floats, Integers

_MAD_TO_SIGMA = 1.4826
_MEDIAN_LOSS = math.sqrt(math.pi / 2.0)
"""A median of m normal values has √(π/2) times the deviation of their mean (efficiency 2/π)."""


@final
class LossCurve:
    """One loss of a run.

    Args:
        name: Under which name it was logged.
        steps: Its steps [n], ascending.
        values: Its values [n].
    """

    def __init__(self, name: str, steps: Integers, values: Floats) -> None:
        self.name = name
        self.steps = steps
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def finite(self) -> Floats:
        """The values that are numbers, in order."""
        return self.values[np.isfinite(self.values)]

    @cached_property
    def first_unsound(self) -> int | None:
        """The first step whose loss is NaN or infinite; None if all are numbers."""
        bad = np.flatnonzero(~np.isfinite(self.values))
        return int(self.steps[bad[0]]) if bad.size else None

    @cached_property
    def noise(self) -> float:
        """Deviation σ of single values around their trend, over the whole run."""
        if self.finite.size < 3:
            return 0.0
        return _MAD_TO_SIGMA * float(np.median(np.abs(np.diff(self.finite)))) / math.sqrt(2.0)

    @cached_property
    def start(self) -> float:
        """The level that training began from."""
        few = self.finite[: min(max(self.finite.size // 50, 3), 10)]
        first, level = float(self.finite[0]), float(np.median(few))
        return first if first < level - 2.0 * self.noise else level

    @cached_property
    def end(self) -> float:
        """The level that it ends at."""
        return float(np.median(self._last))

    @cached_property
    def best(self) -> float:
        """The lowest level held for as many steps as the end is taken over."""
        size = len(self._last)
        medians = [np.median(self.finite[i : i + size]) for i in range(0, self.finite.size - size + 1, size)]
        return float(min([*medians, self.end]))

    @property
    def fall(self) -> float:
        """By how much the level fell; negative if it rose."""
        return self.start - self.end

    @property
    def relative_fall(self) -> float:
        """The same as a share of the start's size; 0 if that is 0."""
        return self.fall / abs(self.start) if self.start else 0.0

    @property
    def learned(self) -> bool:
        """Whether it fell by more than half, and not by chance."""
        return self.relative_fall > 0.5 and self.fall > 3.0 * self.error

    @property
    def error(self) -> float:
        """Standard error of :attr:`fall` from noise alone."""
        parts = 1.0 / min(max(self.finite.size // 50, 3), 10) + 1.0 / len(self._last)
        return _MEDIAN_LOSS * self.noise * math.sqrt(parts)

    @cached_property
    def swing(self) -> float:
        """How far the middle four fifths of the second half's values lie apart."""
        low, high = np.quantile(self._second_half, (0.1, 0.9))
        return float(high - low)

    @cached_property
    def highest(self) -> float:
        """The largest value; infinite if some are not numbers."""
        return math.inf if self.first_unsound is not None else float(self.values.max())

    @cached_property
    def drift(self) -> float:
        """By how much the level fell over the second half alone."""
        half = self._second_half
        quarter = max(len(half) // 4, 1)
        return float(np.median(half[:quarter]) - np.median(half[-quarter:]))

    def at(self, steps: Integers) -> Floats:
        """The values at some steps; NaN where there are none."""
        where = np.minimum(np.searchsorted(self.steps, steps), len(self.steps) - 1)
        return np.where(self.steps[where] == steps, self.values[where], np.nan)

    @cached_property
    def _second_half(self) -> Floats:
        return self.finite[self.finite.size // 2 :]

    @cached_property
    def _last(self) -> Floats:
        return self.finite[-min(max(self.finite.size // 10, 5), 50) :]
