"""What a setting may be, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Slider:
    """A number in a range.

    Attributes:
        name: Of the setting.
        label: In words.
        low: Smallest value.
        high: Largest value.
        step: Distance of values; whole if values are.
        help: What it does, in one short sentence.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    help: str

    def read(self, value: object) -> int | float:
        """The value as this setting's type.

        Raises:
            ValueError: It is no number, or outside the range.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"expected a number from {self.low:g} to {self.high:g}, got {value!r}")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"expected a number from {self.low:g} to {self.high:g}, got {value!r}") from None
        if not self.low <= number <= self.high:  # also turns NaN away
            raise ValueError(f"expected {self.low:g} to {self.high:g}, got {number:g}")
        if float(self.step).is_integer():
            if not number.is_integer():
                raise ValueError(f"expected a whole number, got {number:g}")
            return int(number)
        return number


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several names.

    Attributes:
        name: Of the setting.
        label: In words.
        options: Value and words of each, in the order shown.
        help: What it does, in one short sentence.
    """

    name: str
    label: str
    options: tuple[tuple[str, str], ...]
    help: str

    def read(self, value: object) -> str:
        """The value.

        Raises:
            ValueError: It is not offered.
        """
        offered = [option for option, _ in self.options]
        if value not in offered:
            raise ValueError(f"expected one of {', '.join(offered)}, got {value!r}")
        return str(value)


Control: TypeAlias = Slider | Choice
