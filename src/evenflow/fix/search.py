"""The search: waves of a race and a duel, then growth; pairs and longer trials only where nothing works.

*Recipes.* What a remedy makes for just this case duels at once, from more seeds where its gain is
in doubt; if it is confirmed, the search ends there, for in a net of a thousand layers even
measuring the others takes minutes.

*Waves.* Candidates come a few at a time, the most promising first, and are screened only
then. They *race* from one seed for half a trial; those that break or do worse than the
program go. The best *duel*: they train beside the unpatched program from one seed, and those
that gain there from several, with the same weights where the patch leaves them and the same
batches; one that gained from every seed and is in doubt gets more of them at once. Once a patch is
confirmed, the next wave races against it, and the first wave without a better one is the last.
*Growth.* Programs have more than one fault. The best patch is joined with what else was
promising, one edit more at a time, for as long as the larger patch is confirmed to be better.
Last its learning rate, if it sets one, is tried higher and lower.
*Last resorts.* Where nothing is confirmed, doubtful gains are tried from more seeds, then
pairs of patches, then longer trials, for some cures show late.
*Proof.* What helps at first may harm in the end. So the best and a smaller one, or the second
best, are trained to the end beside the program, and the next ones while none of these is better
there; the check has trained the program to its end as well. If none is better, none is offered.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from evenflow.check import Report, check
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, at_other_rates, left_out
from evenflow.fix.outcome import Outcome, Refuted, Tried, Verdict, proved, ranked
from evenflow.fix.remedy import Case
from evenflow.fix.subject import OfProgram, Subject
from evenflow.fix.track import Track, silently
from evenflow.fix.trials import Trials, other_loss
from evenflow.lab.verdict import number
from evenflow.parallel import Workers
from evenflow.program import Program
from evenflow.surgery import Patch

WATCHING = 1.0
"""Seconds that the check before may spend on watching the whole training. Seven faulty programs of the corpus
and a healthy one had the same findings as with the five seconds of a check alone."""
SHARE = 0.1
"""Of the program's own training: length of the longest trial."""
SHORTEST = 20
"""Steps of a trial at least: a loss of single batches says less than that."""
WAVE = 8
"""Patches that race at a time."""
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
"""Patches that duel from more than one seed, the best from the first."""
PAIRED = 4
"""Patches that are combined with each other, if none alone is confirmed."""
LARGEST = 3
"""Edits of a patch that grew: one more than the median that a repair may have."""
MISSES = 2
"""Waves without a larger patch that is better, after which growth ends."""
LONGER = 4
"""Length of the last trials of all, in trials, if nothing else was confirmed."""

DEAR = 10
"""Whole trainings that a search may take before it is content with what was confirmed."""
PROVEN = 2
"""Patches that are trained to the end before one is offered: the fastest is not always the best."""
ATTEMPTS = 4
"""Patches that are trained to the end at most, while none is better there."""


AND = " and "
"""Between the names of remedies of which a patch is joined."""


def fix(
    program: Program,
    *,
    report: Report | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    ignore: Iterable[str] = (),
    insist: bool = False,
    prove: bool = True,
    workers: Workers | None = None,
    track: Track = silently,
) -> Outcome:
    """Find the smallest change that makes a program train better, and prove it.

    Args:
        program: What is ill; a healthy one is left alone.
        report: Its check, if it was made before; else it is made now.
        seeds: Of the paired trials; at least two, or no effect has an interval.
        steps: Length of a trial; a tenth of the program's training by default, but at least 20 steps,
            and all of a training that has no more than twice as many.
        ignore: Names of remedies to leave out, such as ``skip`` and ``normalise`` to keep the
            architecture.
        insist: Whether notes are reason enough to try something, or no finding at all where the
            model's structure is, for a training that is known to fail although nothing is an alarm.
        prove: Whether the best are trained to the end, up to five whole trainings, and only what is
            better there is offered.
        workers: Who trains; this process by default. Other processes must be able to
            pickle the program, which cloudpickle does for most closures.
        track: Is told how far the search is.

    Returns:
        Confirmed patches, best first, and everything that was tried. After Ctrl-C
        what was found until then.

    Raises:
        ProgramError: The program's parts do not fit.
        ModelError: Its model raised.
        LossError: Its loss is no scalar, or has no gradient.
        EvenflowError: The workers are threads, or ``ignore`` names no remedy.
    """
    ignore = left_out(ignore)
    workers = workers or Workers()
    if workers.backend == "threading" and workers.jobs != 1:
        raise EvenflowError(
            "Trials cannot run in threads, which share PyTorch's random numbers. Take the backend loky."
        )
    if report is None:  # trials come below
        report = check(program, confirm=False, seconds=WATCHING)
    if report.healthy and not insist:
        return Outcome(report)
    with torch.random.fork_rng(devices=[]):
        subject = OfProgram(Case(program, report, program.start(seeds[0])), ignore)
    if steps is None:
        short = program.steps <= 2 * SHORTEST
        steps = program.steps if short else max(SHORTEST, round(SHARE * program.steps))
    return searched(subject, tuple(seeds), steps, workers, track, longest=program.steps, prove=prove)


def searched(
    subject: Subject,
    seeds: tuple[int, ...],
    steps: int,
    workers: Workers,
    track: Track = silently,
    *,
    longest: int = 0,
    prove: bool = False,
) -> Outcome:
    """The search itself; after Ctrl-C what was found until then.

    Args:
        subject: What is to be mended.
        seeds: Of the paired trials.
        steps: Length of a trial.
        workers: Who trains.
        track: Is told how far the search is.
        longest: Length of the whole training, up to which a trial may be longer; 0 if it is not known.
        prove: Whether the best are trained for that long.
    """
    search = _Search(subject, seeds, steps, Trials(subject, workers, track), track, longest)
    try:
        search.run()
        if prove:
            search.prove()
    except KeyboardInterrupt:
        return search.outcome(interrupted=True)
    return search.outcome()


class _Search:
    """One search; what it found so far is in its attributes."""

    def __init__(
        self,
        subject: Subject,
        seeds: tuple[int, ...],
        steps: int,
        trainer: Trials,
        track: Track,
        whole: int,
    ) -> None:
        self.subject, self.seeds, self.steps, self.whole = subject, seeds, steps, whole
        self.trainer, self.track = trainer, track
        self.trials: list[Tried] = []
        self.refuted: list[Refuted] = []
        self.advice: list[str] = []
        self._candidates: list[Candidate] = []

    def run(self) -> None:
        """All of it."""
        self._candidates, self.advice = self.subject.candidates()
        recipes = [one for one in self._candidates if one.first]
        if recipes:
            self._duel(self._screened(recipes))
            if self._best() is None:
                self._doubted()
            if self._best() is not None:
                return
        rest = [one for one in self._candidates if not one.first]
        for start in range(0, len(rest), WAVE):
            better = self._try(rest[start : start + WAVE])
            if self._best() is None:
                self._doubted(surely=True)
            if (self._best() is not None and not better) or self._is_dear():
                break
        if self._best() is None:
            self._second_string()
        if self._best() is None:
            self._doubted()
        if self._best() is None:
            self._try(self._pairs())
        if self._best() is None:
            self._prolonged()
        missed = 0
        while missed < MISSES and not self._is_dear() and (grown := self._grown()):
            missed = 0 if self._try(grown) else missed + 1
        if not self._is_dear():
            self._try(self._tuned())

    def _is_dear(self) -> bool:
        """Whether there is something to offer, and the search has cost enough."""
        return self._best() is not None and self.trainer.steps > DEAR * self.whole > 0

    def prove(self) -> None:
        """Train the best to the end, until one is better there than the program as it is."""
        confirmed = ranked(self._confirmed())
        if not confirmed or any(trial.steps >= self.whole for trial in confirmed):
            return  # nothing to prove, or trials that were whole trainings
        attempts = 0
        while attempts < ATTEMPTS and not any(trial.proof for trial in self._confirmed()):
            order = ranked(self._confirmed())
            best, rest = order[:1], order[1:]
            smaller = [one for one in rest if one.patch.size < best[0].patch.size]
            now = [*best, *(smaller or rest)[: PROVEN - 1]]
            if not now and not self._second_string():
                return
            attempts += len(now)
            proofs = self.trainer.proofs([trial.patch for trial in now], self.seeds[0], self.whole)
            for trial, proof in zip(now, proofs, strict=True):
                self.trials[self.trials.index(trial)] = replace(trial, proof=proof)

    def outcome(self, *, interrupted: bool = False) -> Outcome:
        """What is known by now."""
        offered = proved(ranked(self._confirmed()))
        if any(trial.proof for trial in self.trials) and not any(trial.proof for trial in offered):
            offered = []
        return Outcome(
            self.subject.report,
            tuple(replace(one, flow=self.subject.flow(one.patch)) for one in offered),
            tuple(self.trials),
            tuple(self.refuted),
            tuple(dict.fromkeys(self.advice)),
            interrupted,
        )

    def _confirmed(self) -> list[Tried]:
        return [trial for trial in self.trials if trial.verdict is Verdict.CONFIRMED]

    def _best(self) -> Tried | None:
        return next(iter(ranked(self._confirmed())), None)

    # Candidates

    def _pairs(self) -> list[Candidate]:
        """Pairs of what came out best on its own, of different remedies."""
        best = _by_effect(self.trials)[:PAIRED]
        return [_joined(a, b) for a, b in itertools.combinations(best, 2) if a.remedy != b.remedy][:WAVE]

    def _grown(self) -> list[Candidate]:
        """The best patch and one more, of another remedy each; first what was confirmed on its own.

        What failed alone is among them, for one fault can hide another: behind an output that
        saturates, every gradient is zero whatever else is mended.
        """
        best = self._best()
        if best is None:
            return []
        works = [trial.patch for trial in ranked(self._confirmed())]
        others = sorted(
            self._candidates, key=lambda one: works.index(one.patch) if one.patch in works else len(works)
        )
        known = self._known()
        more, found = list[Candidate](), Counter[str]()
        for one in others:
            grown = _joined(best, one)
            fits = one.remedy not in best.remedy.split(AND) and grown.patch.size <= LARGEST
            if fits and grown.patch not in known and found[one.remedy] < SAME:
                more.append(grown)
                found[one.remedy] += 1
        return more[:WAVE]

    def _tuned(self) -> list[Candidate]:
        """The best patch with other learning rates, if it sets one."""
        best, known = self._best(), self._known()
        if best is None:
            return []
        return [replace(_again(best), patch=one) for one in at_other_rates(best.patch) if one not in known]

    def _known(self) -> list[Patch]:
        return [trial.patch for trial in self.trials] + [one.patch for one in self.refuted]

    def _screened(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        left = []
        for one in self.track("screening", candidates, len(candidates)):
            why = self.subject.screen(one.patch)
            if why is None:
                left.append(one)
            else:
                self.refuted.append(Refuted(one.patch, one.remedy, why))
        return left

    # Trials

    def _try(self, candidates: Sequence[Candidate]) -> bool:
        """Screen, race and duel; whether the best patch is one of these now."""
        if not candidates:
            return False
        self._duel(self._raced(self._screened(candidates)))
        best = self._best()
        return best is not None and any(one.patch == best.patch for one in candidates)

    def _raced(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that go on: the best, and while nothing is confirmed the most promising ones."""
        if not candidates:
            return []
        steps, best = max(1, round(RACE * self.steps)), self._best()
        rival = None if best is None else best.patch
        jobs = [(patch, self.seeds[0], steps) for patch in (None, rival, *(one.patch for one in candidates))]
        baseline, to_beat, *courses = self.trainer.trained(jobs, f"race, {steps} steps")
        left = []
        for one, course in zip(candidates, courses, strict=True):
            if course.broken:
                why = course.trouble or f"Its loss is NaN or infinite after {len(course.losses)} steps."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            elif course.losses == baseline.losses:
                why = f"It changes nothing: {steps} losses are the same to the bit."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            else:
                other = other_loss(one.patch) or other_loss(rival)
                score, before = course.score(other_loss=other), to_beat.score(other_loss=other)
                left.append((score, course.fallen, before, one))
        left.sort(key=lambda entry: entry[:2], reverse=True)
        sound = [one for *_, one in left]
        kept = sorted(sound, key=candidates.index)[:PROMISING] if best is None else []
        found = Counter[str]()
        for score, _, before, one in left:
            if one in kept:
                continue
            # The last places go to other remedies, for the best of one kind may be too much of a change.
            better = score > before
            if better and len(kept) < FINALISTS and found[one.remedy] < SAME:
                kept.append(one)
                found[one.remedy] += 1
                continue
            against = "without it" if rival is None else f"with: {rival.describe()}"
            rest = f"; {FINALISTS} others do better" if better else ""
            why = f"After {steps} steps: {number(score)}, {number(before)} {against}{rest}."
            self.refuted.append(Refuted(one.patch, one.remedy, why))
        return kept

    def _duel(self, finalists: Sequence[Candidate], steps: int | None = None) -> None:
        """From one seed, and those that gain there from all."""
        steps = self.steps if steps is None else steps
        first = self.trainer.paired(finalists, self.seeds[:1], steps)
        self.trials += first
        gaining = _by_score(trial for trial in first if self._gains(trial))[:GAINING]
        again = [one for one in finalists if any(one.patch == trial.patch for trial in gaining)]
        self._replace(self.trainer.paired(again, self.seeds, steps))

    def _gains(self, trial: Tried) -> bool:
        """Whether it beats from its first seed what it has to: the program, and the best patch."""
        best = self._best()
        rival = None if best is None or best.measure != trial.measure or best.steps != trial.steps else best
        return trial.effect > 0 and (rival is None or trial.patched[0] > rival.patched[0])

    def _second_string(self) -> bool:
        """What gained from one seed and was not among the best there, from all; whether there is any."""
        left = [one for one in self.trials if len(one.baseline) == 1 < len(self.seeds) and one.effect > 0]
        now = _by_score(one for one in left if one.steps == self.steps)[:GAINING]
        self._replace(self.trainer.paired([_again(one) for one in now], self.seeds, self.steps))
        return bool(now)

    def _doubted(self, *, surely: bool = False) -> None:
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
        chosen = _by_effect(doubtful)[: 1 if surely else DOUBTFUL]
        self._replace(self.trainer.paired([_again(one) for one in chosen], seeds, self.steps))

    def _prolonged(self) -> None:
        """The best of all in longer trials."""
        longer = min(self.whole, LONGER * self.steps)
        if longer > self.steps:
            self._duel([_again(one) for one in _by_effect(self.trials)[:FINALISTS]], longer)

    def _replace(self, more: Iterable[Tried]) -> None:
        """Put trials from more seeds in the places of those from few."""
        for trial in more:
            same = [one.patch == trial.patch and one.steps == trial.steps for one in self.trials]
            self.trials[same.index(True)] = trial


def _joined(a: Candidate | Tried, b: Candidate | Tried) -> Candidate:
    return Candidate(a.patch + b.patch, f"{a.remedy}{AND}{b.remedy}", f"{a.reason}; {b.reason}", 1.0)


def _again(trial: Tried) -> Candidate:
    return Candidate(trial.patch, trial.remedy, trial.reason, 1.0)


def _by_score(trials: Iterable[Tried]) -> list[Tried]:
    """The best from the first seed; where the baseline broke, gains are no measure of it."""
    trials = list(trials)
    comparable = len({trial.measure for trial in trials}) == 1
    return sorted(trials, key=lambda trial: -(trial.patched[0] if comparable else trial.effect))


def _by_effect(trials: Iterable[Tried]) -> list[Tried]:
    """The largest gain first; what broke last."""
    return sorted(trials, key=lambda trial: -trial.effect if math.isfinite(trial.effect) else math.inf)
