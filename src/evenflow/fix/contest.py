"""Patches against each other and against the program as it is: a race, then a duel.

They *race* from one seed for half a trial; those that break or do worse than the program go. The
best *duel*: they train beside the unpatched program from one seed, and those that gain there from
several, with the same weights where the patch leaves them and the same batches; one that gained
from every seed and is in doubt gets more of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from evenflow.fix.candidates import Candidate
from evenflow.fix.outcome import Refuted, Tried, Verdict, ranked
from evenflow.fix.trials import Trials, other_loss
from evenflow.lab.verdict import number
from evenflow.surgery import Patch

RACE = 0.5
"""Length of a race, as a share of the longest trial."""
FINALISTS = 4
"""Patches of a wave that duel."""
SAME = 2
"""Patches of one remedy that go on from a race by their score."""
PROMISING = 2
"""Patches that go on by their promise, whatever their score: what learns late loses short races."""
DOUBTFUL = 2
"""Patches with a gain that is not beyond doubt, which are tried from more seeds if no other is confirmed. A
second look makes a chance confirmation somewhat likelier than 2.5 %, at most twice."""
GAINING = 2
"""Patches that duel from more than one seed: the best from the first, and the best of another remedy."""
LONGER = 10
"""Length of the last trials of all, in trials, if nothing else was confirmed: by default the whole
training, for what learns late."""


class Contest:
    """Trials of patches, and what came of them.

    Args:
        trainer: Who trains.
        seeds: Of the paired trials; races are from the first.
        steps: Length of a trial.

    Attributes:
        trials: What was tried against the program, in the order tried.
        refuted: What was given up before that.
    """

    def __init__(self, trainer: Trials, seeds: tuple[int, ...], steps: int) -> None:
        self.trainer, self.seeds, self.steps = trainer, seeds, steps
        self.trials: list[Tried] = []
        self.refuted: list[Refuted] = []

    @property
    def confirmed(self) -> list[Tried]:
        """What seeds leave no doubt about, in the order tried."""
        return [trial for trial in self.trials if trial.verdict is Verdict.CONFIRMED]

    @property
    def best(self) -> Tried | None:
        """Of the confirmed; None if there is none."""
        return next(iter(ranked(self.confirmed)), None)

    @property
    def known(self) -> list[Patch]:
        """All patches that were tried or given up."""
        return [trial.patch for trial in self.trials] + [one.patch for one in self.refuted]

    def refute(self, one: Candidate, why: str) -> None:
        """Give a patch up before a paired trial."""
        self.refuted.append(Refuted(one.patch, one.remedy, why))

    def race(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that go on: the best, and while nothing is confirmed the most promising ones.

        As long as nothing is confirmed, a lower loss will do as well, behind the better metrics: an
        accuracy of one in a few classes stands still for long while the loss falls already.
        """
        if not candidates:
            return []
        steps, best = max(1, round(RACE * self.steps)), self.best
        rival = None if best is None else best.patch
        jobs = [(patch, self.seeds[0], steps) for patch in (None, rival, *(one.patch for one in candidates))]
        baseline, to_beat, *courses = self.trainer.trained(jobs, f"race, {steps} steps")
        left = []
        for one, course in zip(candidates, courses, strict=True):
            if course.broken:
                why = course.trouble or f"Its loss is NaN or infinite after {len(course.losses)} steps."
                self.refute(one, why)
            elif course.losses == baseline.losses:
                self.refute(one, f"It changes nothing: {steps} losses are the same to the bit.")
            else:
                other = other_loss(one.patch) or other_loss(rival)
                score, before = course.score(other_loss=other), to_beat.score(other_loss=other)
                fell = course.fallen > to_beat.fallen if other else course.level < to_beat.level
                better = score > before or (best is None and fell)
                left.append((score > before, score, course.fallen, before, better, one))
        left.sort(key=lambda entry: entry[:3], reverse=True)
        sound = [one for *_, one in left]
        kept = sorted(sound, key=candidates.index)[:PROMISING] if best is None else []
        found = Counter[str]()
        for _, score, _, before, better, one in left:
            if one in kept:
                continue
            # The last places go to other remedies, for the best of one kind may be too much of a change.
            if better and len(kept) < FINALISTS and found[one.remedy] < SAME:
                kept.append(one)
                found[one.remedy] += 1
                continue
            against = "without it" if rival is None else f"with: {rival.describe()}"
            rest = f"; {FINALISTS} others do better" if better else ""
            self.refute(one, f"After {steps} steps: {number(score)}, {number(before)} {against}{rest}.")
        return kept

    def duel(self, finalists: Sequence[Candidate], steps: int | None = None) -> None:
        """From one seed, and those that gain there from all."""
        steps = self.steps if steps is None else steps
        first = self.trainer.paired(finalists, self.seeds[:1], steps)
        self.trials += first
        gaining = _varied(_by_score(trial for trial in first if self._gains(trial)))[:GAINING]
        again = [one for one in finalists if any(one.patch == trial.patch for trial in gaining)]
        self._replace(self.trainer.paired(again, self.seeds, steps))

    def _gains(self, trial: Tried) -> bool:
        """Whether it beats from its first seed what it has to: the program, and the best patch."""
        best = self.best
        rival = None if best is None or best.measure != trial.measure or best.steps != trial.steps else best
        return trial.effect > 0 and (rival is None or trial.patched[0] > rival.patched[0])

    def second_string(self) -> bool:
        """What gained from one seed and was not among the best there, from all; whether there is any."""
        left = [one for one in self.trials if len(one.baseline) == 1 < len(self.seeds) and one.effect > 0]
        now = _by_score(one for one in left if one.steps == self.steps)[:GAINING]
        self._replace(self.trainer.paired([again(one) for one in now], self.seeds, self.steps))
        return bool(now)

    def doubted(self, *, surely: bool = False) -> None:
        """The best of the doubtful from as many seeds again.

        Args:
            surely: Only one, and only if it was better from every seed so far.
        """
        doubtful = [
            trial
            for trial in self.trials
            if trial.verdict is Verdict.INCONCLUSIVE
            and 1 < len(trial.baseline) <= len(self.seeds)
            and (min(trial.differences) if surely else trial.effect) > 0
        ]
        left = max(self.seeds) + 1
        seeds = (*self.seeds, *range(left, left + len(self.seeds)))
        chosen = by_effect(doubtful)[: 1 if surely else DOUBTFUL]
        self._replace(self.trainer.paired([again(one) for one in chosen], seeds, self.steps))

    def shrink(self) -> None:
        """Take edits out of the best patch, one at a time, for as long as what is left does as well."""
        while (best := self.best) is not None and best.patch.size > 1:
            edits, known = best.patch.edits, self.known
            parts = [Patch(edits[:i] + edits[i + 1 :], best.patch.seed) for i in range(len(edits))]
            smaller = [replace(again(best), patch=part) for part in parts if part not in known]
            first = self.trainer.paired(smaller, self.seeds[:1], best.steps)
            self.trials += first
            gaining = _by_score(trial for trial in first if trial.effect > 0)[:GAINING]
            self._replace(self.trainer.paired([again(one) for one in gaining], self.seeds, best.steps))
            if self.best is not None and self.best.patch.size >= best.patch.size:
                return

    def prolong(self, whole: int, promising: Sequence[Candidate]) -> None:
        """The most promising and the best in longer trials, at most as long as the whole training.

        Where nothing gained in short trials, what came out best there says little of what learns
        late. Such trials are dear: the best from the first seed is tried from the others, and the
        next only if it is not confirmed.
        """
        longer = min(whole, LONGER * self.steps)
        if longer <= self.steps:
            return
        tried = [trial.patch for trial in self.trials]
        chosen = [one for one in promising if one.patch in tried][:PROMISING]
        rest = (again(trial) for trial in by_effect(self.trials))
        chosen += [one for one in rest if all(one.patch != other.patch for other in chosen)]
        first = self.trainer.paired(chosen[:FINALISTS], self.seeds[:1], longer)
        self.trials += first
        for trial in _by_score(one for one in first if one.effect > 0)[:GAINING]:
            self._replace(self.trainer.paired([again(trial)], self.seeds, longer))
            if self.best is not None:
                return

    def _replace(self, more: Iterable[Tried]) -> None:
        """Put trials from more seeds in the places of those from few."""
        for trial in more:
            same = [one.patch == trial.patch and one.steps == trial.steps for one in self.trials]
            self.trials[same.index(True)] = trial


def again(trial: Tried) -> Candidate:
    """What was tried, to be tried anew."""
    return Candidate(trial.patch, trial.remedy, trial.reason, 1.0)


def by_effect(trials: Iterable[Tried]) -> list[Tried]:
    """The largest gain first; what broke last."""
    return sorted(trials, key=lambda trial: -trial.effect if math.isfinite(trial.effect) else math.inf)


def _by_score(trials: Iterable[Tried]) -> list[Tried]:
    """The best from the first seed; where the baseline broke, gains are no measure of it."""
    trials = list(trials)
    comparable = len({trial.measure for trial in trials}) == 1
    return sorted(trials, key=lambda trial: -(trial.patched[0] if comparable else trial.effect))


def _varied(trials: Sequence[Tried]) -> list[Tried]:
    """The first of each remedy before the others: two learning rates fail for the same reason."""
    seen, first, rest = set[str](), list[Tried](), list[Tried]()
    for trial in trials:
        (rest if trial.remedy in seen else first).append(trial)
        seen.add(trial.remedy)
    return [*first, *rest]
