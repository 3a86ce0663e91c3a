"""An experiment: a question, what theory expects, what a real net shows, and a verdict.

Each experiment is one file in :mod:`evenflow.lab.experiments` with one frozen
dataclass. Its fields are its settings and their defaults are the full size;
``quick`` names the settings that make it small. Running it with the same
settings gives the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

from evenflow.lab.picture import Picture
from evenflow.lab.verdict import Comparison, Verdict

T = TypeVar("T")


class Track(Protocol):
    """Passes a sequence through and shows how far it got."""

    def __call__(self, items: Sequence[T], /) -> Iterable[T]:
        """The same items, in order."""
        ...


def silently(items: Sequence[T], /) -> Iterable[T]:
    """A :class:`Track` that shows nothing."""
    return items


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found.

    Attributes:
        comparisons: Expected and measured numbers, the most telling first.
        pictures: The same to look at.
        notes: What a reader must know to read the numbers, one sentence each.
    """

    comparisons: tuple[Comparison, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of all comparisons."""
        return Verdict.worst(comparison.verdict for comparison in self.comparisons)


@dataclass(frozen=True)
class Experiment(ABC):
    """A question to a real network.

    Class attributes:
        place: Position in the list, which goes from the simple to the involved.
        title: Heading.
        question: What is asked, in one sentence.
        expectation: What theory answers and why, in a few sentences.
        quick: Settings of the small size.
        explains: From a rule or cause, by name, to the picture that its page shows; pages hold stored
            pictures, which docs/pictures.py draws anew.
    """

    place: ClassVar[int]
    title: ClassVar[str]
    question: ClassVar[str]
    expectation: ClassVar[str]
    quick: ClassVar[dict[str, Any]] = {}
    explains: ClassVar[dict[str, str]] = {}

    @classmethod
    def name(cls) -> str:
        """Name on the command line, that of its file: ``sigmoid-depth``."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def of_size(cls, *, quick: bool) -> Self:
        """The experiment at its quick or its full size."""
        return cls(**cls.quick) if quick else cls()

    @abstractmethod
    def run(self, track: Track = silently) -> Outcome:
        """Measure.

        Args:
            track: Is told how far the experiment is.
        """
