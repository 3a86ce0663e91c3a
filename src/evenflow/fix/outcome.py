"""What a search for a fix found: what was confirmed, what was refuted, and by which numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from evenflow.lab.verdict import interval, mean
from evenflow.surgery import Patch

if TYPE_CHECKING:
    from evenflow.check import Report
    from evenflow.flow import Flow


class Verdict(StrEnum):
    """What paired trials say of a patch."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Tried:
    """A patch that was tried against the program as it is, seed by seed.

    Attributes:
        patch: The change.
        remedy: Which remedy it comes from.
        reason: Why it was tried.
        steps: Length of each trial.
        baseline: Score of the unpatched program, one for each seed.
        patched: Score of the patched one, likewise.
        seconds: Processor time of one trial with the patch.
        losses_before: Of the unpatched program, seed by seed, the loss at every step.
        losses_after: Of the patched one, likewise.
        code: The patch as Python for this very program; empty where ``patch.code(model)`` gives it.
        flow: The first batch with the patch; None if it was not confirmed, or could not be measured.
    """

    patch: Patch
    remedy: str
    reason: str
    steps: int
    baseline: tuple[float, ...]
    patched: tuple[float, ...]
    seconds: float
    losses_before: tuple[tuple[float, ...], ...] = ()
    losses_after: tuple[tuple[float, ...], ...] = ()
    code: str = ""
    flow: Flow | None = field(default=None, compare=False)

    @property
    def differences(self) -> tuple[float, ...]:
        """Patched minus unpatched, seed by seed; a baseline that broke counts as the worst patched one."""
        floor = min((score for score in self.patched if score > float("-inf")), default=0.0)
        return tuple(
            after - (before if before > float("-inf") else floor - abs(floor) - 1.0)
            for before, after in zip(self.baseline, self.patched, strict=True)
        )

    @property
    def effect(self) -> float:
        """Mean gain in score."""
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the gain; None where the seeds do not give one."""
        return None if self.seedless else interval(self.differences)

    @property
    def seedless(self) -> bool:
        """Whether every seed gave the very same losses: then there is one sample, and no interval."""
        same = [len(set(losses)) == 1 for losses in (self.losses_before, self.losses_after)]
        return len(self.baseline) > 1 and all(same)

    @property
    def verdict(self) -> Verdict:
        """Confirmed if all of the interval is a gain, refuted if none of it is."""
        found = self.interval
        if found is None:
            return Verdict.INCONCLUSIVE
        low, high = found
        if low > 0:
            return Verdict.CONFIRMED
        return Verdict.REFUTED if high <= 0 else Verdict.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Refuted:
    """A patch that was given up before paired trials, and why, with the numbers."""

    patch: Patch
    remedy: str
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    Attributes:
        report: The check that it began with.
        patches: Confirmed ones, best first.
        trials: All that were tried against the program, in the order tried.
        refuted: What was given up before that.
        advice: What no patch can do.
        interrupted: Whether the search was cut short.
    """

    report: Report
    patches: tuple[Tried, ...] = ()
    trials: tuple[Tried, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    advice: tuple[str, ...] = ()
    interrupted: bool = field(default=False)
