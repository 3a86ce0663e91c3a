"""Vectors that differ from each other by a factor and an entry at the end, kept once.

In a deep net each tensor responds to all sources below it. Down a chain of layers it is
to the same ones in the same proportions, and one more at each layer. So a vector is the
beginning of a row of numbers times a scale: a multiple shares the row, and what gets an
entry at the end writes it there, where no other vector that shares the row looks.
Memory and time of a chain are then linear in its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

LIMIT = 1e6
"""Scales beyond, or below its inverse, are multiplied out, well within what single precision can hold."""
SPARE = 16
"""Entries that a new row has room for at its end."""


class _Row:
    """Numbers that several vectors share.

    Attributes:
        numbers: With zeros at the end.
        used: How many some vector looks at.
    """

    __slots__ = ("numbers", "used")

    def __init__(self, numbers: NDArray[np.float32], used: int) -> None:
        self.numbers = numbers
        self.used = used


@final
class Coefficients:
    """A vector that does not change; entries beyond its end are zero.

    Attributes:
        size: How many entries it has.
    """

    __slots__ = ("_row", "_scale", "size")

    def __init__(self, row: _Row, size: int, scale: float = 1.0) -> None:
        self._row = row
        self._scale = scale
        self.size = size

    @classmethod
    def of(cls, values: Sequence[float]) -> Coefficients:
        """With those entries."""
        numbers = np.array(values, np.float32)
        return cls(_Row(numbers, numbers.size), numbers.size)

    @property
    def array(self) -> NDArray[np.float32]:
        """All entries."""
        return self._row.numbers[: self.size] * np.float32(self._scale)

    def __getitem__(self, at: int) -> float:
        """One entry."""
        return self._scale * float(self._row.numbers[at]) if at < self.size else 0.0

    def times(self, factor: float) -> Coefficients:
        """Its multiple."""
        return Coefficients(self._row, self.size, self._scale * factor)

    def dot(self, other: Coefficients) -> float:
        """Σ a b."""
        n = min(self.size, other.size)
        return self._scale * other._scale * float(self._row.numbers[:n] @ other._row.numbers[:n])

    def plus(self, value: float, at: int) -> Coefficients:
        """With a value added to one entry."""
        row, size, scale = self._row, self.size, self._scale
        if at < size or row.used != size or not 1 / LIMIT < abs(scale) < LIMIT:
            size, scale = max(at + 1, size), 1.0
            row = _Row(_longer(self.array, size), size)
        else:
            size = row.used = at + 1
            if size > row.numbers.size:
                row.numbers = _longer(row.numbers, size + size // 8)
        row.numbers[at] += value / scale
        return Coefficients(row, size, scale)


def added(parts: Sequence[Coefficients]) -> Coefficients:
    """The sum of two vectors or more."""
    longest, *others = sorted(parts, key=lambda part: -part.size)
    numbers = _longer(longest.array, longest.size)
    for part in others:
        numbers[: part.size] += part.array
    return Coefficients(_Row(numbers, longest.size), longest.size)


def _longer(numbers: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Those numbers, and zeros up to that size and some to spare."""
    result = np.zeros(size + SPARE, np.float32)
    result[: numbers.size] = numbers
    return result
