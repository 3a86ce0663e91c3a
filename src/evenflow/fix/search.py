"""The search: waves of a race and a duel, then growth; pairs and longer trials only where nothing works.

*Recipes.* What a remedy makes for just this case duels at once, from more seeds where its gain is
in doubt; if it is confirmed, the search ends there, for in a net of a thousand layers even
measuring the others takes minutes.

*Waves.* Candidates come a few at a time, the most promising first, and are screened only
then. They *race* from one seed for half a trial; those that break or do worse than the
program go. The best *duel*: they train beside the unpatched program from several seeds,
with the same weights where the patch leaves them and the same batches. Once a patch is
confirmed, the next wave races against it, and the first wave without a better one is the last.
*Growth.* Programs have more than one fault. The best patch is joined with what else was
promising, one edit more at a time, for as long as the larger patch is confirmed to be better.
Last its learning rate, if it sets one, is tried higher and lower.
*Last resorts.* Where nothing is confirmed, doubtful gains are tried from more seeds, then
pairs of patches, then longer trials, for some cures show late.
*Proof.* What helps at first may harm in the end. So the best two are trained to the end beside
the program, and the next ones while none of these is better there; the check has
trained the program to its end as well. If none is better, none is offered.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from evenflow.check import Report, check
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, at_other_rates, left_out
from evenflow.fix.course import Course
from evenflow.fix.outcome import Outcome, Proof, Refuted, Tried, Verdict, proved, ranked
from evenflow.fix.remedy import Case
from evenflow.fix.subject import Job, OfProgram, Subject
from evenflow.lab.verdict import number
from evenflow.parallel import Workers
from evenflow.program import Program
from evenflow.surgery import Patch

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
PAIRED = 4
"""Patches that are combined with each other, if none alone is confirmed."""
LARGEST = 3
"""Edits of a patch that grew: one more than the median that a repair may have."""
MISSES = 2
"""Waves without a larger patch that is better, after which growth ends."""
LONGER = 4
"""Length of the last trials of all, in trials, if nothing else was confirmed."""

PROVEN = 2
"""Patches that are trained to the end before one is offered: the fastest is not always the best."""
ATTEMPTS = 4
"""Patches that are trained to the end at most, while none is better there."""


class Track(Protocol):
    """Passes items through and shows how far they got, under a title."""

    def __call__(self, title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
        """The same items."""


def silently(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows nothing."""
    return items


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
    report = check(program, confirm=False) if report is None else report  # trials come below
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
        longest: Length of the whole training, up to which a trial may be longer; if it is not known, none is.
        prove: Whether the best are trained for that long.
    """
    search = _Search(subject, seeds, steps, workers, track, max(steps, min(longest, LONGER * steps)))
    try:
        search.run()
        if prove:
            search.prove(longest)
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
        workers: Workers,
        track: Track,
        longest: int,
    ) -> None:
        self.subject, self.seeds, self.steps, self.longest = subject, seeds, steps, longest
        self.workers, self.track = workers, track
        self.trials: list[Tried] = []
        self.refuted: list[Refuted] = []
        self.advice: list[str] = []
        self._candidates: list[Candidate] = []
        self._courses: dict[tuple[str, int, int], Course] = {}

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
            if not self._try(rest[start : start + WAVE]) and self._best() is not None:
                break
        if self._best() is None:
            self._doubted()
        if self._best() is None:
            self._try(self._pairs())
        if self._best() is None and self.longest > self.steps:
            self._prolonged()
        missed = 0
        while missed < MISSES and (grown := self._grown()):
            missed = 0 if self._try(grown) else missed + 1
        self._try(self._tuned())

    def prove(self, steps: int) -> None:
        """Train the best to the end, until one is better there than the program as it is."""
        confirmed = ranked(self._confirmed())
        if any(trial.steps >= steps for trial in confirmed):  # trials that were whole trainings
            return
        finalists = confirmed[:ATTEMPTS]
        while finalists and not any(trial.proof for trial in self._confirmed()):
            now, finalists = finalists[:PROVEN], finalists[PROVEN:]
            jobs: list[Job] = [(None, self.seeds[0], steps)]
            jobs += [(trial.patch, self.seeds[0], steps) for trial in now]
            baseline, *courses = self._trained(jobs, f"proof, {steps} steps")
            for trial, course in zip(now, courses, strict=True):
                other = _other_loss(trial.patch)
                proof = Proof(steps, baseline.score(other_loss=other), course.score(other_loss=other))
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
        steps, best = min(self.steps, max(SHORTEST // 2, round(RACE * self.steps))), self._best()
        rival = None if best is None else best.patch
        jobs = [(patch, self.seeds[0], steps) for patch in (None, rival, *(one.patch for one in candidates))]
        baseline, to_beat, *courses = self._trained(jobs, f"race, {steps} steps")
        left = []
        for one, course in zip(candidates, courses, strict=True):
            if course.broken:
                why = course.trouble or f"Its loss is NaN or infinite after {len(course.losses)} steps."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            elif course.losses == baseline.losses:
                why = f"It changes nothing: {steps} losses are the same to the bit."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            else:
                other = _other_loss(one.patch) or (rival is not None and _other_loss(rival))
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

    def _duel(self, finalists: Sequence[Candidate]) -> None:
        self.trials += self._paired(finalists, self.seeds, self.steps)

    def _doubted(self) -> None:
        """The best of the doubtful from as many seeds again."""
        doubtful = _by_effect(
            one for one in self.trials if one.verdict is Verdict.INCONCLUSIVE and one.effect > 0
        )[:DOUBTFUL]
        left = max(self.seeds) + 1
        seeds = (*self.seeds, *range(left, left + len(self.seeds)))
        for trial in self._paired([_again(one) for one in doubtful], seeds, self.steps):
            self.trials[[one.patch for one in self.trials].index(trial.patch)] = trial

    def _prolonged(self) -> None:
        """The best of all in longer trials."""
        best = _by_effect(self.trials)[:FINALISTS]
        self.trials += self._paired([_again(one) for one in best], self.seeds, self.longest)

    def _paired(self, finalists: Sequence[Candidate], seeds: tuple[int, ...], steps: int) -> list[Tried]:
        if not finalists:
            return []
        jobs = [(patch, seed, steps) for patch in (None, *(one.patch for one in finalists)) for seed in seeds]
        courses = self._trained(jobs, f"trials, {steps} steps")
        count = len(seeds)
        baseline, trials = courses[:count], []
        for position, one in enumerate(finalists, start=1):
            own = courses[position * count : (position + 1) * count]
            other = _other_loss(one.patch)
            trials.append(
                Tried(
                    one.patch,
                    one.remedy,
                    one.reason,
                    steps,
                    tuple(course.score(other_loss=other) for course in baseline),
                    tuple(course.score(other_loss=other) for course in own),
                    math.fsum(course.seconds for course in own) / count,
                    tuple(course.losses for course in baseline),
                    tuple(course.losses for course in own),
                    own[0].code,
                    measure=_measure(own, other=other),
                )
            )
        return trials

    def _trained(self, jobs: Sequence[Job], title: str) -> list[Course]:
        """A course for each (patch, seed, steps); those of before are not trained again."""
        keys = [("" if patch is None else patch.to_json(), seed, steps) for patch, seed, steps in jobs]
        todo = [
            (key, job) for key, job in dict(zip(keys, jobs, strict=True)).items() if key not in self._courses
        ]
        results = self.workers.map(self.subject.course(), [job for _, job in todo])
        for (key, _), course in zip(todo, self.track(title, results, len(todo)), strict=True):
            self._courses[key] = course
        return [self._courses[key] for key in keys]


def _measure(courses: Sequence[Course], *, other: bool) -> str:
    """What their score is; see :meth:`Course.score`."""
    if any(course.metric is not None for course in courses):
        return "metric"
    return "fall" if other else "loss"


def _other_loss(patch: Patch) -> bool:
    return "loss" in patch.touches


def _joined(a: Candidate | Tried, b: Candidate | Tried) -> Candidate:
    return Candidate(a.patch + b.patch, f"{a.remedy}{AND}{b.remedy}", f"{a.reason}; {b.reason}", 1.0)


def _again(trial: Tried) -> Candidate:
    return Candidate(trial.patch, trial.remedy, trial.reason, 1.0)


def _by_effect(trials: Iterable[Tried]) -> list[Tried]:
    """The largest gain first; what broke last."""
    return sorted(trials, key=lambda trial: -trial.effect if math.isfinite(trial.effect) else math.inf)
