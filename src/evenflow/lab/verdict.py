"""When a measurement agrees with an expectation, and when it cannot tell.

An expectation is a range of the true value, such as −16.2 ± .1. A measurement is
one number per seed; its mean has a 95 % confidence interval m ± t s/√n. If all of
the interval lies in the range, the measurement *agrees*; if none of it does, it
*disagrees*; if only a part does, it *cannot tell*, and more seeds would. So
scatter alone never passes for agreement, as it would if an overlap were enough.

References:
    D. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), p. 661: equivalence by
    two one-sided tests, here each at 2.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy import special

CONFIDENCE = 0.95


class Verdict(StrEnum):
    """What a measurement says of an expectation."""

    AGREES = "agrees"
    CANNOT_TELL = "cannot tell"
    DISAGREES = "disagrees"

    @staticmethod
    def worst(verdicts: Iterable[Verdict]) -> Verdict:
        """One verdict for many: a disagreement anywhere counts, then a doubt."""
        found = set(verdicts)
        for verdict in (Verdict.DISAGREES, Verdict.CANNOT_TELL):
            if verdict in found:
                return verdict
        return Verdict.AGREES


@dataclass(frozen=True, slots=True)
class Expectation:
    """Where the true value should lie, and who says so.

    Attributes:
        low: Lower end; −inf for "at most".
        high: Upper end; inf for "at least".
        value: The number itself, for a picture or a table.
        formula: How it comes about, in the field's symbols.
        source: Paper with equation, or THEORY.md with its section.
    """

    low: float
    high: float
    value: float
    formula: str
    source: str

    @property
    def text(self) -> str:
        """``−16.2 ± 0.1``, ``≤ 0.25`` or ``≥ 3``."""
        if math.isinf(self.low):
            return f"≤ {number(self.high)}"
        if math.isinf(self.high):
            return f"≥ {number(self.low)}"
        return plus_minus(self.value, (self.high - self.low) / 2)


def near(value: float, tolerance: float, formula: str, source: str) -> Expectation:
    """``value`` ± ``tolerance``."""
    return Expectation(value - tolerance, value + tolerance, value, formula, source)


def at_most(bound: float, formula: str, source: str) -> Expectation:
    """No more than ``bound``."""
    return Expectation(-math.inf, bound, bound, formula, source)


def at_least(bound: float, formula: str, source: str) -> Expectation:
    """No less than ``bound``."""
    return Expectation(bound, math.inf, bound, formula, source)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number that was expected and measured.

    Attributes:
        quantity: What it is, with its unit.
        expected: Where it should lie.
        samples: What was measured, once per seed.
        exact: Whether nothing about the samples is random, so that even one
            sample has an interval (of width 0).
    """

    quantity: str
    expected: Expectation
    samples: tuple[float, ...]
    exact: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.samples)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean; None where the samples do not give one."""
        return interval(self.samples, exact=self.exact)

    @property
    def verdict(self) -> Verdict:
        """See the module."""
        found, expected = self.interval, self.expected
        if found is None:
            return Verdict.CANNOT_TELL
        low, high = found
        if expected.low <= low and high <= expected.high:
            return Verdict.AGREES
        return Verdict.DISAGREES if high < expected.low or low > expected.high else Verdict.CANNOT_TELL

    @property
    def text(self) -> str:
        """The mean and the half-width of its interval."""
        if self.interval is None:
            return f"{number(self.mean)} (no interval from {len(self.samples)} seed)"
        low, high = self.interval
        if low == high:
            return number(self.mean)
        return plus_minus(self.mean, (high - low) / 2)


def mean(samples: Sequence[float]) -> float:
    """Mean; NaN of nothing or of what has no mean."""
    return sum(samples) / len(samples) if samples else math.nan


def interval(samples: Sequence[float], *, exact: bool = False) -> tuple[float, float] | None:
    """95 % confidence interval of the mean, assuming nearly normal samples.

    Args:
        samples: One per seed.
        exact: Whether they are free of chance, so that one is enough.

    Returns:
        (low, high). Samples that are all the same have an interval of width 0, also
        if they are infinite. None of fewer than two random samples, of NaN, and
        of a mixture of finite and infinite ones.
    """
    if not samples or any(map(math.isnan, samples)) or (len(samples) < 2 and not exact):
        return None
    if len(set(samples)) == 1:
        return samples[0], samples[0]
    if any(map(math.isinf, samples)):
        return None
    centre, n = mean(samples), len(samples)
    variance = math.fsum((x - centre) ** 2 for x in samples) / (n - 1)
    reach = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance / n)
    return centre - reach, centre + reach


def plus_minus(value: float, reach: float) -> str:
    """``−16.180 ± 0.040``: the reach with two digits, and the value with as many decimals."""
    decimals = 1 - math.floor(math.log10(reach)) if 0 < reach < math.inf else 99
    if not 0 <= decimals <= 6:
        return f"{number(value)} ± {number(reach)}"
    text = f"{value:.{decimals}f} ± {reach:.{decimals}f}"
    return text.replace("-", "−") if float(f"{value:.{decimals}f}") else text.lstrip("-")


def number(x: float) -> str:
    """Four digits at most, with a true minus; 0 for what is tiny beside 1e-12."""
    if math.isnan(x):
        return "?"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if abs(x) < 1e-12:
        return "0"
    text = f"{x:.4g}" if 1e-3 <= abs(x) < 1e5 else f"{x:.2e}"
    return text.replace("-", "−")
