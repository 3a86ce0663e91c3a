"""What a search for a fix found: what was confirmed, what was refuted, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


LEAST = 0.005
"""Gain below which a patch is not worth having, as a share of the score: half a point near 100 %, about two
standard errors of an accuracy of 99.6 % on 512 samples. A judgement."""


SIGNS = 6
"""Seeds whose smallest and largest gain hold the median with 95 %: all lie on one side of it with a
probability of 2⁻⁵ = 3 % (Conover, Practical Nonparametric Statistics, 1999)."""

LOST = 10.0
"""Times the worst patched score's size (and 1) that a baseline lies below it where it has diverged. How far
says nothing then: each seed goes to another power of ten, and no interval leaves out 0. A judgement."""


def gains(before: float, after: float) -> bool:
    """Whether one score is above another by more than nothing, see :data:`LEAST`."""
    if not math.isfinite(before) or not math.isfinite(after):
        return after > before
    return after - before > LEAST * max(abs(before), abs(after))


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of whole trainings, one with a patch and one without.

    Attributes:
        steps: Their length.
        baseline: Score of the unpatched program.
        patched: Score of the patched one.
    """

    steps: int
    baseline: float
    patched: float

    @property
    def better(self) -> bool:
        """Whether the patch is worth having in the end."""
        return gains(self.baseline, self.patched)


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
        measure: What the scores are: ``metric``; minus the ``loss``; or its ``fall``, as a logarithm.
        proof: What came of it after the whole training; None if that was not tried.
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
    measure: str = "loss"
    proof: Proof | None = None

    @property
    def differences(self) -> tuple[float, ...]:
        """Patched minus unpatched, seed by seed; a baseline that broke counts as the worst patched one."""
        floor = self._worst - abs(self._worst) - 1.0
        return tuple(
            after - (before if before > float("-inf") else floor)
            for before, after in zip(self.baseline, self.patched, strict=True)
        )

    @property
    def diverged(self) -> bool:
        """Whether a gain is larger than it counts in the interval, for its baseline is :data:`LOST`."""
        return self._bounded != self.differences

    @property
    def _bounded(self) -> tuple[float, ...]:
        """The differences, with a baseline that is lost at the point where it counts as that."""
        lost = self._worst - LOST * (abs(self._worst) + 1.0)
        return tuple(
            min(gain, after - lost) for gain, after in zip(self.differences, self.patched, strict=True)
        )

    @property
    def _worst(self) -> float:
        """The worst patched score of those that did not break."""
        return min((score for score in self.patched if score > float("-inf")), default=0.0)

    @property
    def effect(self) -> float:
        """Mean gain in score."""
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the gain; None where the seeds do not give one.

        Of its mean, by Student's t. Where that holds 0 although every seed of :data:`SIGNS` or
        more says the same, of its median: from the smallest gain to the largest. A program that
        broke from one seed and not from the others makes t's as wide as its worst score is low.
        For the same reason what is :data:`LOST` counts as no worse than that.
        Who has two ways to be sure errs at most twice as often.
        """
        if self.seedless:
            return None
        gained = self._bounded
        found = interval(gained)
        if found is not None and found[0] <= 0 <= found[1] and len(gained) >= SIGNS:
            low, high = min(gained), max(gained)
            return (low, high) if low > 0 or high < 0 else found
        return found

    @property
    def seedless(self) -> bool:
        """Whether every seed gave the very same losses: then there is one sample, and no interval."""
        same = [len(set(losses)) == 1 for losses in (self.losses_before, self.losses_after)]
        return len(self.baseline) > 1 and all(same)

    @property
    def verdict(self) -> Verdict:
        """Confirmed if all of the interval is a gain worth having, refuted if none of it is one.

        Refuted as well is what gains in short trials and not in the whole training.
        """
        if self.proof is not None and not self.proof.better:
            return Verdict.REFUTED
        found = self.interval
        if found is None:
            return Verdict.INCONCLUSIVE
        low, high = found
        if low > 0:
            worth = gains(mean(self.baseline), mean(self.patched))
            return Verdict.CONFIRMED if worth else Verdict.INCONCLUSIVE
        return Verdict.REFUTED if high <= 0 else Verdict.INCONCLUSIVE


def ranked(confirmed: Sequence[Tried]) -> list[Tried]:
    """Best first, and before all the smallest of those that seeds cannot tell from the best."""
    if not confirmed:
        return []
    comparable = all(_same_baseline(one, confirmed[0]) for one in confirmed)

    def worth(trial: Tried) -> float:
        # Gains over a baseline that broke are counted from a floor of each patch's own.
        return mean(trial.patched) if comparable else trial.effect

    best = max(confirmed, key=worth)
    as_good = [trial for trial in confirmed if not _surpassed(trial, best)]
    rest = [trial for trial in confirmed if trial not in as_good]
    return [
        *sorted(as_good, key=lambda trial: (trial.patch.size, -worth(trial))),
        *sorted(rest, key=lambda trial: -worth(trial)),
    ]


def proved(confirmed: Sequence[Tried]) -> list[Tried]:
    """Best first, by whole trainings where there were any; of those that end alike the smallest.

    Args:
        confirmed: As :func:`ranked` gives them, without what was refuted.
    """
    proven = [trial for trial in confirmed if trial.proof is not None]
    others = [trial for trial in confirmed if trial.proof is None]
    if len({trial.measure for trial in proven}) > 1:  # scores of different kinds
        return [*proven, *others]

    def end(trial: Tried) -> float:
        assert trial.proof is not None
        return trial.proof.patched

    best = max(map(end, proven), default=0.0)
    behind = [trial for trial in proven if gains(end(trial), best)]
    first = sorted((trial for trial in proven if trial not in behind), key=lambda trial: trial.patch.size)
    return [*first, *sorted(behind, key=lambda trial: -end(trial)), *others]


def _surpassed(trial: Tried, best: Tried) -> bool:
    """Whether the other is better beyond doubt: seed by seed, or by intervals if seeds do not pair."""
    if _same_baseline(trial, best):
        pairs = zip(best.patched, trial.patched, strict=False)
        found = interval([one - other for one, other in pairs])
        return found is not None and found[0] > 0
    if trial.interval is None or best.interval is None:
        return trial.effect < best.effect
    return trial.interval[1] < best.interval[0]


def _same_baseline(one: Tried, other: Tried) -> bool:
    """Whether two patches were tried against the same trainings by the same measure, or one against more."""
    count = min(len(one.baseline), len(other.baseline))
    same = one.steps == other.steps and one.measure == other.measure
    return same and one.baseline[:count] == other.baseline[:count]


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
        interrupted: Whether the search was cut short by Ctrl-C.
        time_up: Whether it was because its time was up.
    """

    report: Report
    patches: tuple[Tried, ...] = ()
    trials: tuple[Tried, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    advice: tuple[str, ...] = ()
    interrupted: bool = False
    time_up: bool = False
