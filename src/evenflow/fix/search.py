"""The search: waves of a race and a duel, then growth; pairs and longer trials only where nothing works.

*Recipes.* What a remedy makes for just this case duels at once, from more seeds where its gain is
in doubt; if it is confirmed, the search ends there, for in a net of a thousand layers even
measuring the others takes minutes.

*Waves.* Candidates come a few at a time, the most promising first, are screened only then, race
and duel (see :mod:`evenflow.fix.contest`); one that gained from every seed and is in doubt gets
more of them at once. Once a patch is confirmed, the next wave races against it, and the first
wave without a better one is the last.
*Growth.* Programs have more than one fault. The best patch is joined with what else was
promising, one edit more at a time, for as long as the larger patch is confirmed to be better.
Last its learning rate, if it sets one, is tried higher and lower.
*Last resorts.* Where nothing is confirmed, doubtful gains are tried from more seeds, then the
standard recipe whole, which is then shrunk edit by edit, then pairs of patches, then longer
trials, up to the whole training, for some cures show late.
*Proof.* What helps at first may harm in the end. So the best, a smaller one and the next best
are trained to the end beside the program, and the next ones while none of these is better
there; the check has trained the program to its end as well. If none is better, none is offered.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from evenflow.check import LEAST_WATCHING, Report, check
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, at_other_rates, left_out
from evenflow.fix.contest import SAME, Contest, again, by_effect
from evenflow.fix.deadline import NEVER, Deadline, TimeUpError
from evenflow.fix.outcome import Outcome, Tried, proved, ranked
from evenflow.fix.remedy import Case
from evenflow.fix.subject import OfProgram, Subject
from evenflow.fix.track import Track, silently
from evenflow.fix.trials import Trials
from evenflow.parallel import Workers
from evenflow.program import Program
from evenflow.surgery import Patch

SHARE = 0.1
"""Of the program's own training: length of the longest trial."""
SHORTEST = 20
"""Steps of a trial at least: a loss of single batches says less than that."""
WAVE = 8
"""Patches that race at a time."""
PAIRED = 4
"""Patches that are combined with each other, if none alone is confirmed."""
LARGEST = 3
"""Edits of a patch that grew: one more than the median that a repair may have."""
MISSES = 2
"""Waves without a larger patch that is better, after which growth ends."""

DEAR = 10
"""Whole trainings that a search may take before it is content with what was confirmed."""
PROVEN = 3
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
    minutes: float | None = None,
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
        minutes: How long all of it may take, the check included; then the search ends as after
            Ctrl-C. Trainings stop at the batch at work. No limit by default.
        workers: Who trains; this process by default. Other processes must be able to
            pickle the program, which cloudpickle does for most closures.
        track: Is told how far the search is.

    Returns:
        Confirmed patches, best first, and everything that was tried. After Ctrl-C, or
        when time is up, what was found until then.

    Raises:
        ProgramError: The program's parts do not fit.
        ModelError: Its model raised.
        LossError: Its loss is no scalar, or has no gradient.
        EvenflowError: The workers are threads, ``ignore`` names no remedy, or the check took all
            of the time.
    """
    ignore, deadline = left_out(ignore), Deadline.after(minutes)
    workers = workers or Workers()
    if workers.backend == "threading" and workers.jobs != 1:
        raise EvenflowError(
            "Trials cannot run in threads, which share PyTorch's random numbers. Take the backend loky."
        )
    if report is None:  # trials come below
        try:
            report = check(deadline.on(program), confirm=False, seconds=LEAST_WATCHING)
        except TimeUpError:
            raise EvenflowError(
                f"The check before the search trains the program once, which takes longer than {minutes:g} "
                "minutes. Allow more time."
            ) from None
    if report.healthy and not insist:
        return Outcome(report)
    with torch.random.fork_rng(devices=[]):
        subject = OfProgram(Case(program, report, program.start(seeds[0])), ignore, deadline)
    if steps is None:
        short = program.steps <= 2 * SHORTEST
        steps = program.steps if short else max(SHORTEST, round(SHARE * program.steps))
    return searched(
        subject,
        tuple(seeds),
        steps,
        workers,
        track,
        longest=program.steps,
        prove=prove,
        deadline=deadline,
    )


def searched(
    subject: Subject,
    seeds: tuple[int, ...],
    steps: int,
    workers: Workers,
    track: Track = silently,
    *,
    longest: int = 0,
    prove: bool = False,
    deadline: Deadline = NEVER,
) -> Outcome:
    """The search itself; after Ctrl-C, or when time is up, what was found until then.

    Args:
        subject: What is to be mended.
        seeds: Of the paired trials.
        steps: Length of a trial.
        workers: Who trains.
        track: Is told how far the search is.
        longest: Length of the whole training, up to which a trial may be longer; 0 if it is not known.
        prove: Whether the best are trained for that long.
        deadline: When it has to end.
    """
    track = deadline.tracking(track)
    search = _Search(subject, seeds, steps, Trials(subject, workers, track), track, longest)
    try:
        search.run()
        if prove:
            search.prove()
    except TimeUpError:
        return search.outcome(time_up=True)
    except KeyboardInterrupt:
        return search.outcome(interrupted=True)
    return search.outcome()


class _Search:
    """One search; what it found so far is in its contest."""

    def __init__(
        self,
        subject: Subject,
        seeds: tuple[int, ...],
        steps: int,
        trainer: Trials,
        track: Track,
        whole: int,
    ) -> None:
        self.subject, self.trainer, self.track, self.whole = subject, trainer, track, whole
        self.contest = Contest(trainer, seeds, steps)
        self.advice: list[str] = []
        self._candidates: list[Candidate] = []

    def run(self) -> None:
        """All of it."""
        contest = self.contest
        self._candidates, self.advice = self.subject.candidates()
        recipes = [one for one in self._candidates if one.first]
        if recipes:
            contest.duel(self._screened(recipes))
            if contest.best is None:
                contest.doubted()
            if contest.best is not None:
                return
        rest = [one for one in self._candidates if not one.first and not one.last]
        for start in range(0, len(rest), WAVE):
            better = self._try(rest[start : start + WAVE])
            if contest.best is None:
                contest.doubted(surely=True)
            if (contest.best is not None and not better) or self._is_dear():
                break
        if contest.best is None:
            contest.second_string()
        if contest.best is None:
            contest.doubted()
        if contest.best is None:
            self._last_resort()
        if contest.best is None:
            self._try(self._pairs())
        if contest.best is None:
            contest.prolong(self.whole, self._candidates)
            return  # growth of what shows late cannot be seen in trials of the usual length
        missed = 0
        while missed < MISSES and not self._is_dear() and (grown := self._grown()):
            missed = 0 if self._try(grown) else missed + 1
        if not self._is_dear():
            self._try(self._tuned())

    def _last_resort(self) -> None:
        """All of the usual at once, then as little of it as does as well."""
        self.contest.duel(self._screened([one for one in self._candidates if one.last]))
        if self.contest.best is None:
            self.contest.doubted(surely=True)
        self.contest.shrink()

    def _is_dear(self) -> bool:
        """Whether there is something to offer, and the search has cost enough."""
        return self.contest.best is not None and self.trainer.steps > DEAR * self.whole > 0

    def prove(self) -> None:
        """Train the best to the end, until one is better there than the program as it is."""
        contest = self.contest
        if not contest.confirmed or any(trial.steps >= self.whole for trial in contest.confirmed):
            return  # nothing to prove, or trials that were whole trainings
        attempts = 0
        while attempts < ATTEMPTS and not any(trial.proof for trial in contest.confirmed):
            order = ranked(contest.confirmed)
            best, rest = order[:1], order[1:]
            smaller = [one for one in rest if one.patch.size < best[0].patch.size][:1]
            others = [one for one in rest if one not in smaller]
            now = [*best, *smaller, *others][: min(PROVEN, ATTEMPTS - attempts)]
            if not now and not contest.second_string():
                return
            attempts += len(now)
            proofs = self.trainer.proofs([trial.patch for trial in now], contest.seeds[0], self.whole)
            for trial, proof in zip(now, proofs, strict=True):
                contest.trials[contest.trials.index(trial)] = replace(trial, proof=proof)

    def outcome(self, *, interrupted: bool = False, time_up: bool = False) -> Outcome:
        """What is known by now."""
        contest = self.contest
        offered = proved(ranked(contest.confirmed))
        if any(trial.proof for trial in contest.trials) and not any(trial.proof for trial in offered):
            offered = []
        return Outcome(
            self.subject.report,
            tuple(replace(one, flow=self.subject.flow(one.patch)) for one in offered),
            tuple(contest.trials),
            tuple(contest.refuted),
            tuple(dict.fromkeys(self.advice)),
            interrupted,
            time_up,
        )

    # Candidates

    def _pairs(self) -> list[Candidate]:
        """Pairs of what came out best on its own, of different remedies."""
        best, known = by_effect(self.contest.trials)[:PAIRED], self.contest.known
        pairs = [_joined(a, b) for a, b in itertools.combinations(best, 2) if a.remedy != b.remedy]
        return [one for one in pairs if one.patch not in known][:WAVE]

    def _grown(self) -> list[Candidate]:
        """The best patch and one more, of another remedy each; first what was confirmed on its own.

        What failed alone is among them, for one fault can hide another: behind an output that
        saturates, every gradient is zero whatever else is mended.
        """
        best = self.contest.best
        if best is None:
            return []
        works = [trial.patch for trial in ranked(self.contest.confirmed)]
        others = sorted(
            self._candidates, key=lambda one: works.index(one.patch) if one.patch in works else len(works)
        )
        known = self.contest.known
        more, found = list[Candidate](), Counter[str]()
        for one in others:
            grown = _joined(best, one)
            fits = not one.last and one.remedy not in best.remedy.split(AND) and grown.patch.size <= LARGEST
            if fits and grown.patch not in known and found[one.remedy] < SAME:
                more.append(grown)
                found[one.remedy] += 1
        return more[:WAVE]

    def _tuned(self) -> list[Candidate]:
        """The best patch with other learning rates, if it sets one."""
        best, known = self.contest.best, self.contest.known
        if best is None:
            return []
        return [replace(again(best), patch=one) for one in at_other_rates(best.patch) if one not in known]

    def _screened(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        left = []
        for one in self.track("screening", candidates, len(candidates)):
            why = self.subject.screen(one.patch)
            if why is None:
                left.append(one)
            else:
                self.contest.refute(one, why)
        return left

    def _try(self, candidates: Sequence[Candidate]) -> bool:
        """Screen, race and duel; whether the best patch is one of these now."""
        if not candidates:
            return False
        self.contest.duel(self.contest.race(self._screened(candidates)))
        best = self.contest.best
        return best is not None and any(one.patch == best.patch for one in candidates)


def _joined(a: Candidate | Tried, b: Candidate | Tried) -> Candidate:
    """One and then the other; an edit that both have is made once."""
    more = tuple(edit for edit in b.patch.edits if edit not in a.patch.edits)
    return Candidate(a.patch + Patch(more), f"{a.remedy}{AND}{b.remedy}", f"{a.reason}; {b.reason}", 1.0)
