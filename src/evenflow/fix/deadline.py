"""A limit of time for a search: once it is over, what trains stops at its next batch.

What trains elsewhere cannot be interrupted from here, so it looks at the clock itself, and
gives a course that was cut; the search then ends as after Ctrl-C.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

from evenflow.errors import EvenflowError
from evenflow.fix.track import Track
from evenflow.program import Program


class TimeUpError(KeyboardInterrupt):
    """The time of a search is over; what catches errors of a program lets it pass, as it does Ctrl-C."""


@final
@dataclass(frozen=True, slots=True)
class Deadline:
    """When a search has to end.

    Attributes:
        moment: In seconds since the epoch, which other processes and machines share; infinite for never.
    """

    moment: float = math.inf

    @staticmethod
    def after(minutes: float | None) -> Deadline:
        """So many minutes from now; None for never.

        Raises:
            EvenflowError: It is not above 0.
        """
        if minutes is None:
            return NEVER
        if not minutes > 0:
            raise EvenflowError(f"minutes is how long the search may take, above 0; got {minutes:g}.")
        return Deadline(time.time() + 60.0 * minutes)

    @property
    def left(self) -> float | None:
        """Seconds until then, at least 0; None for never."""
        return None if math.isinf(self.moment) else max(0.0, self.moment - time.time())

    def check(self) -> None:
        """Raise once it is over.

        Raises:
            TimeUpError: It is.
        """
        if self.left == 0.0:
            raise TimeUpError

    def tracking(self, track: Track) -> Track:
        """The same, but it looks at the clock before and after each item."""

        def tracked(title: str, items: Iterable[Any], total: int) -> Iterator[Any]:
            self.check()
            for item in track(title, items, total):
                self.check()
                yield item
                self.check()

        return tracked

    def on(self, program: Program) -> Program:
        """The same program, whose trainings end with :class:`TimeUpError` at the next batch."""
        return program if self.left is None else replace(program, batches=_Timed(program.batches, self))


NEVER = Deadline()
"""A search that takes as long as it takes."""


@final
@dataclass(frozen=True, slots=True)
class _Timed:
    """Batches that look at the clock."""

    batches: Callable[[int], Iterable[Any]]
    deadline: Deadline

    def __call__(self, seed: int) -> Iterator[Any]:
        for batch in self.batches(seed):
            self.deadline.check()
            yield batch
