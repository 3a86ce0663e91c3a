"""What a part of the recorder costs a step, and whether the budget has room for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from evenflow.watch.governor import CALL_SECONDS

_MEMORY = 0.2
"""Weight of the latest step in the running mean."""
_FORGIVING = 0.99
"""What is left of a cost after each step without it, so that one slow moment does not end it for good."""


@final
class Meter:
    """The running cost of some hooks.

    Args:
        timed: Wraps a hook, whose time is taken for the governor and told to the meter.
        share: Share of the budget that these hooks may take.
    """

    def __init__(
        self,
        timed: Callable[[Callable[..., None], Callable[[float], None]], Callable[..., None]],
        share: float,
    ) -> None:
        self._timed = timed
        self._share = share
        self._spent = 0.0
        self._calls = 0
        self._cost: float | None = None

    def timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        """The hook, with its time taken here and by the governor."""
        return self._timed(hook, self._spend)

    def _spend(self, seconds: float) -> None:
        self._spent += seconds
        self._calls += 1

    def affordable(self, seconds: float | None, budget: float | None) -> bool:
        """Whether the next step can have these hooks; called once a step.

        Args:
            seconds: Duration of the step that ended; None if its beginning was not seen.
            budget: Share of the time that all of evenflow may take; None for no limit.
        """
        spent, self._spent = self._spent + self._calls * CALL_SECONDS, 0.0
        ran, self._calls = self._calls > 0, 0
        if budget is None:
            return True
        if ran:
            self._cost = spent if self._cost is None else self._cost + _MEMORY * (spent - self._cost)
        elif self._cost is not None:
            self._cost *= _FORGIVING
        if seconds is None or self._cost is None:
            return True
        return self._cost <= self._share * budget * max(seconds - spent, 0.0)
