"""The search: screen, race, duel, and combinations only where single patches fail.

*Recipes.* What a remedy makes for just this case duels at once; if it is confirmed, the
search ends there, for in a net of a thousand layers even measuring the others takes minutes.

*Race.* All candidates train for a few steps from one seed; those that break or do
worse than the program itself go, and so does the worse half of the rest. The
survivors train for twice as many steps, and so on (successive halving).
*Duel.* The last few train beside the unpatched program from several seeds, with
the same weights where the patch leaves them and the same batches.

References:
    K. Jamieson & A. Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", AISTATS 2016 (successive halving).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from evenflow.check import Report, check
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, left_out, proposed
from evenflow.fix.course import Course, train
from evenflow.fix.outcome import Outcome, Refuted, Tried, Verdict
from evenflow.fix.remedy import Case
from evenflow.fix.screen import screen
from evenflow.flow import Flow
from evenflow.lab.verdict import number
from evenflow.measure.first import first_flows
from evenflow.parallel import Workers
from evenflow.program import Program
from evenflow.surgery import Patch

SHARE = 0.1
"""Of the program's own training: length of the longest trial."""
SHORTEST = 20
"""Steps of a trial at least: a loss of single batches says less than that."""
RUNGS = (0.25, 0.5)
"""Lengths of the race's rounds, as shares of the longest trial."""
FINALISTS = 5
"""Patches that duel."""
SAME = 2
"""Patches of one remedy that go on from a round by their score."""
PROMISING = 2
"""Patches that go on by their promise, whatever their score: what learns late loses short races."""
DOUBTFUL = 2
"""Patches with a gain that is not beyond doubt, which are tried from more seeds if no other is confirmed. A
second look makes a chance confirmation somewhat likelier than 2.5 %, at most twice."""
PAIRED = 6
"""Patches that are combined with each other, if none alone is confirmed."""


class Track(Protocol):
    """Passes items through and shows how far they got, under a title."""

    def __call__(self, title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
        """The same items."""


def silently(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows nothing."""
    return items


Job: TypeAlias = tuple[Patch | None, int, int]
"""(patch or None, seed, steps): one training."""


class Subject(Protocol):
    """What is to be mended: a program, or a script."""

    @property
    def report(self) -> Report:
        """What was found before."""

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        """(what remedies make of it, the most promising first; what only a person can do)."""

    def screen(self, patch: Patch) -> str | None:
        """Why a patch is not worth a trial; None if it is, or if only a trial can tell."""

    def course(self) -> Callable[[Job], Course]:
        """What trains; it can be pickled."""

    def flow(self, patch: Patch) -> Flow | None:
        """The first batch with a patch; None if it is not known."""


def fix(
    program: Program,
    *,
    report: Report | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    ignore: Iterable[str] = (),
    insist: bool = False,
    workers: Workers | None = None,
    track: Track = silently,
) -> Outcome:
    """Find the smallest change that makes a program train better, and prove it.

    Args:
        program: What is ill; a healthy one is left alone.
        report: Its check, if it was made before; else it is made now.
        seeds: Of the paired trials; at least two, or no effect has an interval.
        steps: Length of the longest trial; a tenth of the program's training by default, at least
            20 steps where it has as many.
        ignore: Names of remedies to leave out, such as ``skip`` and ``normalise`` to keep the
            architecture.
        insist: Whether notes are reason enough to try something, for a training that is known
            to fail although no finding is an alarm.
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
    if report.healthy and not (insist and report.findings):
        return Outcome(report)
    with torch.random.fork_rng(devices=[]):
        subject = OfProgram(Case(program, report, program.start(seeds[0])), ignore)
    if steps is None:
        steps = min(program.steps, max(SHORTEST, round(SHARE * program.steps)))
    return searched(subject, tuple(seeds), steps, workers, track)


def searched(
    subject: Subject, seeds: tuple[int, ...], steps: int, workers: Workers, track: Track = silently
) -> Outcome:
    """The search itself; after Ctrl-C what was found until then."""
    search = _Search(subject, seeds, steps, workers, track)
    try:
        search.run()
    except KeyboardInterrupt:
        return search.outcome(interrupted=True)
    return search.outcome()


@dataclass(frozen=True, slots=True)
class OfProgram:
    """A program to be mended."""

    case: Case
    ignore: Collection[str] = ()

    @property
    def report(self) -> Report:
        """See :class:`Subject`."""
        return self.case.report

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        """See :class:`Subject`."""
        return proposed(self.case, self.ignore)

    def screen(self, patch: Patch) -> str | None:
        """See :class:`Subject`."""
        return screen(self.case, patch)

    def course(self) -> Callable[[Job], Course]:
        """See :class:`Subject`."""
        return partial(_course, self.case.program)

    def flow(self, patch: Patch) -> Flow | None:
        """See :class:`Subject`; of several roles the first."""
        return next(iter(first_flows(patch.program(self.case.program)).values()))


class _Search:
    """One search; what it found so far is in its attributes."""

    def __init__(
        self, subject: Subject, seeds: tuple[int, ...], steps: int, workers: Workers, track: Track
    ) -> None:
        self.subject, self.seeds, self.steps = subject, seeds, steps
        self.workers, self.track = workers, track
        self.trials: list[Tried] = []
        self.refuted: list[Refuted] = []
        self.advice: list[str] = []
        self._courses: dict[tuple[str, int, int], Course] = {}

    def run(self) -> None:
        """All of it."""
        candidates, self.advice = self.subject.candidates()
        recipes = [one for one in candidates if one.first]
        if recipes:
            self._duel(self._screened(recipes))
        if not self._confirmed():
            self._try(self._screened([one for one in candidates if not one.first]))
        if not self._confirmed():
            self._try(self._screened(self._combined()))

    def outcome(self, *, interrupted: bool = False) -> Outcome:
        """What is known by now."""
        return Outcome(
            self.subject.report,
            tuple(replace(one, flow=self.subject.flow(one.patch)) for one in _ranked(self._confirmed())),
            tuple(self.trials),
            tuple(self.refuted),
            tuple(dict.fromkeys(self.advice)),
            interrupted,
        )

    def _confirmed(self) -> list[Tried]:
        return [trial for trial in self.trials if trial.verdict is Verdict.CONFIRMED]

    # Candidates

    def _combined(self) -> list[Candidate]:
        """Pairs of what came out best on its own, of different remedies."""
        best = sorted(
            self.trials, key=lambda trial: -trial.effect if math.isfinite(trial.effect) else math.inf
        )
        return [
            Candidate(a.patch + b.patch, f"{a.remedy} and {b.remedy}", f"{a.reason}; {b.reason}", 1.0)
            for a, b in itertools.combinations(best[:PAIRED], 2)
            if a.remedy != b.remedy
        ]

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

    def _try(self, candidates: list[Candidate]) -> None:
        for share in RUNGS:
            if len(candidates) > FINALISTS:
                candidates = self._raced(
                    candidates, min(self.steps, max(SHORTEST // 2, round(share * self.steps)))
                )
        self._duel(candidates[:FINALISTS])

    def _raced(self, candidates: list[Candidate], steps: int) -> list[Candidate]:
        """The better half after so many steps; what breaks is refuted."""
        jobs = [(None, self.seeds[0], steps), *((one.patch, self.seeds[0], steps) for one in candidates)]
        baseline, *courses = self._trained(jobs, f"race, {steps} steps")
        left = []
        for one, course in zip(candidates, courses, strict=True):
            if course.broken:
                why = course.trouble or f"Its loss is NaN or infinite after {len(course.losses)} steps."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            elif course.losses == baseline.losses:
                why = f"It changes nothing: {steps} losses are the same to the bit."
                self.refuted.append(Refuted(one.patch, one.remedy, why))
            else:
                left.append((course.score(other_loss=_other_loss(one.patch)), course.fallen, one))
        left.sort(key=lambda entry: (entry[0], entry[1]), reverse=True)
        keep = max(FINALISTS, math.ceil(len(left) / 2))
        sound = [one for _, _, one in left]
        kept = sorted(sound, key=candidates.index)[:PROMISING]
        found = Counter[str]()
        for score, _, one in left:
            if one in kept:
                continue
            # The last places go to other remedies, for the best of one kind may be too much of a change.
            if len(kept) < keep and found[one.remedy] < SAME:
                kept.append(one)
                found[one.remedy] += 1
                continue
            before = baseline.score(other_loss=_other_loss(one.patch))
            why = (
                f"After {steps} steps: {number(score)}, {number(before)} without it; {keep} others do better."
            )
            self.refuted.append(Refuted(one.patch, one.remedy, why))
        return kept

    def _duel(self, finalists: Sequence[Candidate]) -> None:
        """Paired trials; where none confirms, the best of the doubtful get as many seeds again."""
        trials = self._paired(finalists, self.seeds)
        if not any(trial.verdict is Verdict.CONFIRMED for trial in trials):
            doubtful = sorted(
                (one for one in trials if one.verdict is Verdict.INCONCLUSIVE and one.effect > 0),
                key=lambda trial: -trial.effect,
            )[:DOUBTFUL]
            left = max(self.seeds) + 1
            seeds = (*self.seeds, *range(left, left + len(self.seeds)))
            again = self._paired(
                [one for one in finalists if one.patch in [t.patch for t in doubtful]], seeds
            )
            trials = [next((new for new in again if new.patch == old.patch), old) for old in trials]
        self.trials += trials

    def _paired(self, finalists: Sequence[Candidate], seeds: tuple[int, ...]) -> list[Tried]:
        if not finalists:
            return []
        jobs = [
            (patch, seed, self.steps) for patch in (None, *(one.patch for one in finalists)) for seed in seeds
        ]
        courses = self._trained(jobs, f"trials, {self.steps} steps")
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
                    self.steps,
                    tuple(course.score(other_loss=other) for course in baseline),
                    tuple(course.score(other_loss=other) for course in own),
                    math.fsum(course.seconds for course in own) / count,
                    tuple(course.losses for course in baseline),
                    tuple(course.losses for course in own),
                    own[0].code,
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


def _course(program: Program, job: Job) -> Course:
    patch, seed, steps = job
    try:
        return train(program if patch is None else patch.program(program), steps, seed)
    except Exception:  # a patched program that raises in the middle of training is one that broke
        if patch is None:
            raise
        return Course((), None, 0.0)


def _other_loss(patch: Patch) -> bool:
    return "loss" in patch.touches


def _ranked(confirmed: Sequence[Tried]) -> list[Tried]:
    """The smallest first among those whose interval reaches that of the best; then by effect."""
    if not confirmed:
        return []
    best = max(confirmed, key=lambda trial: trial.effect)
    low = best.interval[0] if best.interval is not None else best.effect
    as_good = [trial for trial in confirmed if trial.interval is not None and trial.interval[1] >= low]
    rest = [trial for trial in confirmed if trial not in as_good]
    return [
        *sorted(as_good, key=lambda trial: (trial.patch.size, -trial.effect)),
        *sorted(rest, key=lambda trial: -trial.effect),
    ]
