"""A net whose settings can be turned, and the profile of its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from evenflow.errors import EvenflowError
from evenflow.lab.playground.control import Control


class SettingError(EvenflowError):
    """A setting is not known, or has a value that it cannot have."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The gradient along a net, log10 ‖δ‖ relative to its end.

    Attributes:
        levels: From the first place to the last; the last is 0.
        low: Lower edge of where one random net lies with 95 %, if that is known.
        high: Upper edge.
        doubts: Why the figures may not hold, one sentence each.
    """

    levels: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    doubts: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """How many decades the gradient gains from the last place to the first."""
        return self.levels[0]


@dataclass(frozen=True)
class Net(ABC):
    """Settings of a net.

    Class attributes:
        places: What the profile runs over, for the axis of a picture.
        controls: Every setting, in the order shown.
    """

    places: ClassVar[str]
    controls: ClassVar[tuple[Control, ...]]

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """The net with these settings; those left out keep their defaults.

        Raises:
            SettingError: One is not known, or has a value that it cannot have.
        """
        known = {control.name: control for control in cls.controls}
        read = {}
        for name, value in values.items():
            if name not in known:
                raise SettingError(f"There is no setting {name!r} here. There are: {', '.join(known)}.")
            try:
                read[name] = known[name].read(value)
            except ValueError as error:
                raise SettingError(f"{name}: {error}.") from None
        return cls(**read)

    @property
    def idle(self) -> frozenset[str]:
        """Settings that change nothing beside the present others."""
        return frozenset()

    @abstractmethod
    def expected(self) -> Profile:
        """What theory expects, over random nets.

        Raises:
            TheoryError: There is no closed form for these settings.
        """

    @abstractmethod
    def measured(self, seed: int = 0) -> Profile:
        """One random net, one batch: the real thing."""
