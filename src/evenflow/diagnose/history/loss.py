"""The loss over the steps, against its noise: has training learned, stalled, swung, or run away?

Two levels are compared. The *start* is the median of the first values, or the
first value where that differs by more than noise: a loss that shoots up at once
and comes back has gained nothing, and one that falls at once has. The *end* is
the median of the last tenth. Noise is told from trend by first differences: for
independent noise of deviation σ around a slow trend they have deviation √2·σ, and
the median of their absolute values (times 1.4826) is not moved by a few spikes.

References:
    F. Hampel, "The influence curve and its role in robust estimation", JASA 1974
    (1.4826: the median absolute deviation of a normal distribution is .6745 σ).
    M. Bartlett, "On the theoretical specification and sampling properties of
    autocorrelated time-series", JRSS Supplement 1946.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from evenflow.diagnose.history.grid import Floats, Integers

_MAD_TO_SIGMA = 1.4826
_MEDIAN_LOSS = math.sqrt(math.pi / 2.0)
"""A median of m normal values has √(π/2) times the deviation of their mean (efficiency 2/π)."""


_WINDOW = 128
"""Losses before a spike that their noise is taken from (OLMo-core's number)."""
_AFTER = 16
"""Losses before a spike that it is compared with; fewer, for the level may be falling (a judgement)."""
_SMOOTHED = 5
"""Values of which a running median is taken: two in a row are a moment (a judgement)."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss far above those before it.

    Attributes:
        step: Its step; of several in a row the first.
        ratio: The loss over the median of those before.
    """

    step: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Swings:
    """How a loss moves about the best curve that only falls.

    Attributes:
        size: How far the 10 % and the 90 % quantile of the distances from that curve lie apart.
        carried: Correlation of one distance with the next, those beyond the quantiles moved there:
            about 0 of noise that each batch makes anew, whatever its size.
        error: Standard error of ``carried`` for such noise, 1/√n (Bartlett 1946).
        rises: How often the level rose by three quarters of ``size`` after it had fallen as much.
        turn: Steps from one turn of the level to the next, on average; infinite without a rise.
    """

    size: float
    carried: float
    error: float
    rises: int
    turn: float


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
        return first if abs(first - level) > 2.0 * self.noise else level

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
    def swings(self) -> Swings:
        """How it moves about the best curve that only falls, after its first quarter."""
        from scipy.optimize import isotonic_regression

        late = self.finite[self.finite.size // 4 :]
        about = late - isotonic_regression(late, increasing=False).x
        low, high = np.quantile(about, (0.1, 0.9))
        about = about.clip(low, high)
        power = float(about @ about)
        carried = float(about[1:] @ about[:-1]) / power if power > 0.0 else 0.0
        size = float(high - low)
        rises = _rises(_smooth(late), 0.75 * size)
        turn = late.size / (2.0 * rises) if rises else math.inf
        return Swings(size, carried, 1.0 / math.sqrt(late.size), rises, turn)

    @cached_property
    def middle_of_second_half(self) -> float:
        """The median of the second half's values."""
        return float(np.median(self._second_half))

    def last_above(self, level: float) -> int:
        """Place of the last value above a level, or the first place."""
        above = np.flatnonzero(self.values > level)
        return int(above[-1]) if above.size else 0

    @property
    def last_third(self) -> Floats:
        """The values of the last third of the steps."""
        return self.values[-max(len(self) // 3, 1) :]

    @property
    def finite_at_end(self) -> int:
        """How many of the last values in a row are numbers."""
        bad = np.flatnonzero(~np.isfinite(self.values))
        return len(self) - 1 - int(bad[-1]) if bad.size else len(self)

    def left_level(self) -> int:
        """The step after its best level at which it first rose half way to its end, and not for a moment."""
        width = min(_SMOOTHED, len(self))
        smooth = _smooth(self.values)
        best = int(smooth.argmin()) if self.best < self.start else 0
        middle = (min(self.best, self.start) + self.end) / 2.0
        above = np.flatnonzero(smooth[best:] > middle)
        first = best + int(above[0]) if above.size else 0
        return int(self.steps[min(first + width // 2, len(self) - 1)]) if above.size else int(self.steps[0])

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

    def spikes(self, deviations: float, times: float) -> list[Spike]:
        """Losses far above those before them, in order.

        Args:
            deviations: How many deviations of the logarithm above the median before;
                deviations from step to step, that is, around any trend.
            times: How many times that median, at least.
        """
        if not (self.finite > 0.0).all():
            return []
        logs = np.log(np.where(np.isfinite(self.values), self.values, np.nan))
        found: list[Spike] = []
        quiet_from = 0
        for i in range(_AFTER, len(logs)):
            if not logs[i] - np.log(times) > logs[i - 1] or i < quiet_from:
                continue
            centre = np.nanmedian(logs[i - _AFTER : i])
            changes = np.abs(np.diff(logs[max(i - _WINDOW, 0) : i]))
            spread = _MAD_TO_SIGMA * np.nanmedian(changes) / math.sqrt(2.0)
            if logs[i] > centre + max(deviations * spread, np.log(times)):
                found.append(Spike(int(self.steps[i]), float(np.exp(logs[i] - centre))))
                quiet_from = i + _AFTER
        return found

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


def _smooth(values: Floats) -> Floats:
    """Running medians."""
    width = min(_SMOOTHED, len(values))
    smooth: Floats = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    return smooth


def _rises(level: Floats, height: float) -> int:
    """How often a level rose by a height after it had fallen as much, or from its beginning on."""
    found, turn, is_up = 0, float(level[0]), False
    for value in level.tolist():
        turn = max(turn, value) if is_up else min(turn, value)
        if abs(value - turn) > height:
            found += not is_up
            turn, is_up = value, not is_up
    return found
