"""Trials: short trainings from the same seeds, with a patch and without.

What was trained once is kept, so that a baseline is trained once for all patches, and
what the best patch did in a race is known when a rival comes. The steps are counted, for
they are the price of a search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evenflow.fix.candidates import Candidate
from evenflow.fix.course import Course
from evenflow.fix.deadline import TimeUpError
from evenflow.fix.outcome import Proof, Tried
from evenflow.fix.subject import Job, Subject
from evenflow.fix.track import Track
from evenflow.parallel import Workers
from evenflow.surgery import Patch


class Trials:
    """Trains a subject with patches, and compares.

    Args:
        subject: What is to be mended.
        workers: Who trains.
        track: Is told how far the trainings are.
    """

    def __init__(self, subject: Subject, workers: Workers, track: Track) -> None:
        self._subject, self._workers, self._track = subject, workers, track
        self._courses: dict[tuple[str, int, int], Course] = {}

    @property
    def steps(self) -> int:
        """Steps that were trained, all trainings together; one that broke counts as far as it went."""
        return sum(len(course.losses) for course in self._courses.values())

    def trained(self, jobs: Sequence[Job], title: str) -> list[Course]:
        """A course for each (patch, seed, steps); those of before are not trained again.

        Raises:
            TimeUpError: The search's time was up before one ended.
        """
        keys = [("" if patch is None else patch.to_json(), seed, steps) for patch, seed, steps in jobs]
        todo = [
            (key, job) for key, job in dict(zip(keys, jobs, strict=True)).items() if key not in self._courses
        ]
        results = self._workers.map(self._subject.course(), [job for _, job in todo])
        for (key, _), course in zip(todo, self._track(title, results, len(todo)), strict=True):
            if course.cut:
                raise TimeUpError
            self._courses[key] = course
        return [self._courses[key] for key in keys]

    def paired(self, candidates: Sequence[Candidate], seeds: tuple[int, ...], steps: int) -> list[Tried]:
        """Every candidate beside the program as it is, seed by seed."""
        if not candidates:
            return []
        patches = (None, *(one.patch for one in candidates))
        courses = self.trained(
            [(patch, seed, steps) for patch in patches for seed in seeds], f"trials, {steps} steps"
        )
        count = len(seeds)
        return [
            _compared(one, steps, courses[:count], courses[position * count : (position + 1) * count])
            for position, one in enumerate(candidates, start=1)
        ]

    def proofs(self, patches: Sequence[Patch], seed: int, steps: int) -> list[Proof]:
        """Every patch beside the program as it is, in one training of so many steps each."""
        if not patches:
            return []
        jobs = [(patch, seed, steps) for patch in (None, *patches)]
        baseline, *courses = self.trained(jobs, f"proof, {steps} steps")
        return [
            Proof(steps, *(course.score(other_loss=other_loss(patch)) for course in (baseline, own)))
            for patch, own in zip(patches, courses, strict=True)
        ]


def other_loss(patch: Patch | None) -> bool:
    """Whether losses with it are of another kind than without it."""
    return patch is not None and "loss" in patch.touches


def _compared(one: Candidate, steps: int, baseline: list[Course], own: list[Course]) -> Tried:
    other = other_loss(one.patch)
    return Tried(
        one.patch,
        one.remedy,
        one.reason,
        steps,
        tuple(course.score(other_loss=other) for course in baseline),
        tuple(course.score(other_loss=other) for course in own),
        math.fsum(course.seconds for course in own) / len(own),
        tuple(course.losses for course in baseline),
        tuple(course.losses for course in own),
        own[0].code,
        measure=_measure(own, other=other),
    )


def _measure(courses: Sequence[Course], *, other: bool) -> str:
    """What their score is; see :meth:`Course.score`."""
    if any(course.metric is not None for course in courses):
        return "metric"
    return "fall" if other else "loss"
