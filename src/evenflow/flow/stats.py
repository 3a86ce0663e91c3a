"""What is kept of a tensor: moments, extremes and a histogram of exponents.

For the finite entries ``x_1 … x_n`` of a tensor

    mean = Σ x / n,   mean_square = Σ x² / n,   abs_max = max |x|

and ``exponents[e]`` counts the non-zero entries with ``floor(log2 |x|) = e``.
All of it merges exactly: the statistics of two micro-batches, or of two ranks,
combine to those of their union (:meth:`Stats.merge`), so no figure depends on
how a batch was cut. The exponents tell what any float format would lose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evenflow.flow.formats import FORMATS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Exponents:
    """Counts of non-zero finite entries by ``floor(log2 |x|)``.

    Attributes:
        low: Exponent of the first bin.
        counts: Entries per bin, for exponents ``low, low + 1, …``; the first
            and the last are non-zero, so equal histograms compare equal.
    """

    low: int = 0
    counts: tuple[int, ...] = ()

    @classmethod
    def from_dense(cls, low: int, counts: npt.NDArray[np.int64]) -> Exponents:
        """Trim empty bins from both ends of ``counts`` [bins]."""
        (used,) = counts.nonzero()
        if used.size == 0:
            return cls()
        first, last = int(used[0]), int(used[-1])
        return cls(low + first, tuple(counts[first : last + 1].tolist()))

    def merge(self, other: Exponents) -> Exponents:
        """The histogram of both sets of entries together."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        low = min(self.low, other.low)
        total = [0] * (max(self.high, other.high) - low + 1)
        for part in (self, other):
            for offset, count in enumerate(part.counts, start=part.low - low):
                total[offset] += count
        return Exponents(low, tuple(total))

    @property
    def high(self) -> int:
        """Exponent of the last bin."""
        return self.low + len(self.counts) - 1

    @property
    def total(self) -> int:
        """Number of non-zero finite entries."""
        return sum(self.counts)

    def below(self, exponent: int) -> int:
        """How many entries have an exponent smaller than ``exponent``."""
        return sum(self.counts[: max(0, exponent - self.low)])

    def above(self, exponent: int) -> int:
        """How many entries have an exponent larger than ``exponent``."""
        return self.total - self.below(exponent + 1)


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of one tensor.

    Attributes:
        count: Number of entries, finite or not.
        mean: Mean of the finite entries.
        mean_square: Mean of their squares (not centred).
        abs_max: Largest absolute value among them; None if not known.
        zero_count: Entries exactly zero; None if not known.
        nonfinite_count: Entries that are NaN or infinite.
        exponents: Histogram over powers of two; None if not known, as in a
            predicted Flow. Entries below the tensor's own smallest normal
            number keep their true exponent, except in float64, where they
            share the bin −1023.
    """

    count: int
    mean: float
    mean_square: float
    abs_max: float | None = None
    zero_count: int | None = None
    nonfinite_count: int = 0
    exponents: Exponents | None = field(default=None, repr=False)

    def merge(self, other: Stats) -> Stats:
        """Statistics of the union of both tensors' entries.

        A field that either side does not know stays unknown.
        """
        finite, other_finite = self.finite_count, other.finite_count
        total = finite + other_finite
        weight = finite / total if total else 0.0
        other_weight = other_finite / total if total else 0.0
        return Stats(
            count=self.count + other.count,
            mean=_mix(weight, self.mean, other_weight, other.mean),
            mean_square=_mix(weight, self.mean_square, other_weight, other.mean_square),
            abs_max=None
            if self.abs_max is None or other.abs_max is None
            else max(self.abs_max, other.abs_max),
            zero_count=None
            if self.zero_count is None or other.zero_count is None
            else self.zero_count + other.zero_count,
            nonfinite_count=self.nonfinite_count + other.nonfinite_count,
            exponents=None
            if self.exponents is None or other.exponents is None
            else self.exponents.merge(other.exponents),
        )

    @staticmethod
    def merge_all(parts: Iterable[Stats]) -> Stats:
        """Merge any number of statistics, at least one.

        Raises:
            ValueError: ``parts`` is empty.
        """
        iterator = iter(parts)
        try:
            total = next(iterator)
        except StopIteration:
            raise ValueError("Stats.merge_all got nothing to merge: pass at least one Stats") from None
        for part in iterator:
            total = total.merge(part)
        return total

    @property
    def finite_count(self) -> int:
        """Entries that are neither NaN nor infinite."""
        return self.count - self.nonfinite_count

    @property
    def rms(self) -> float:
        """Root of ``mean_square``."""
        return math.sqrt(self.mean_square)

    @property
    def std(self) -> float:
        """Standard deviation of the finite entries (centred, population)."""
        return math.sqrt(max(self.mean_square - self.mean**2, 0.0))

    @property
    def norm(self) -> float:
        """Euclidean norm of the finite entries."""
        return math.sqrt(self.mean_square * self.finite_count)

    @property
    def log10_norm(self) -> float:
        """Base-10 log of the norm; −inf for a tensor of zeros."""
        if self.mean_square == 0.0 or self.finite_count == 0:
            return -math.inf
        return 0.5 * (math.log10(self.mean_square) + math.log10(self.finite_count))

    @property
    def log10_rms(self) -> float:
        """Base-10 log of the RMS; −inf for a tensor of zeros."""
        return 0.5 * math.log10(self.mean_square) if self.mean_square > 0.0 else -math.inf

    @property
    def zero_fraction(self) -> float | None:
        """Share of entries exactly zero; None if not known."""
        if self.zero_count is None:
            return None
        return self.zero_count / self.count if self.count else 0.0

    def underflow_fraction(self, format_name: str) -> float | None:
        """Share of the non-zero entries that would become zero in a float format.

        Args:
            format_name: ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.

        Returns:
            A number from 0 to 1, or None where exponents are not known. An
            entry counts as lost when its exponent lies below the format's
            smallest subnormal number.
        """
        return self._lost(lambda e: e.below(FORMATS[format_name].min_subnormal))

    def subnormal_fraction(self, format_name: str) -> float | None:
        """Share of the non-zero entries below the format's smallest normal number, the lost ones included."""
        return self._lost(lambda e: e.below(FORMATS[format_name].min_normal))

    def overflow_fraction(self, format_name: str) -> float | None:
        """Share of the non-zero entries too large for a float format; None if not known."""
        return self._lost(lambda e: e.above(FORMATS[format_name].max_exponent))

    def _lost(self, count: Callable[[Exponents], int]) -> float | None:
        if self.exponents is None:
            return None
        total = self.exponents.total
        return count(self.exponents) / total if total else 0.0


def _mix(weight: float, value: float, other_weight: float, other: float) -> float:
    """Weighted sum in which a part of weight 0 has no say, not even by being NaN."""
    return (weight * value if weight else 0.0) + (other_weight * other if other_weight else 0.0)
