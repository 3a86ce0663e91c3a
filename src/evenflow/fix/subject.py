"""What a search needs of what is to be mended; a program gives it, and so does a script."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from evenflow.check import Report
from evenflow.fix.candidates import Candidate, proposed
from evenflow.fix.course import Course, train
from evenflow.fix.deadline import NEVER, Deadline, TimeUpError
from evenflow.fix.remedy import Case
from evenflow.fix.screen import screen
from evenflow.flow import Flow
from evenflow.measure.first import first_flows
from evenflow.program import Program
from evenflow.surgery import Patch

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


@dataclass(frozen=True, slots=True)
class OfProgram:
    """A program to be mended."""

    case: Case
    ignore: Collection[str] = ()
    deadline: Deadline = NEVER

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
        return partial(_course, self.deadline.on(self.case.program))

    def flow(self, patch: Patch) -> Flow | None:
        """See :class:`Subject`; of several roles the first."""
        return next(iter(first_flows(patch.program(self.case.program)).values()))


def _course(program: Program, job: Job) -> Course:
    patch, seed, steps = job
    try:
        return train(program if patch is None else patch.program(program), steps, seed)
    except TimeUpError:
        return Course((), None, 0.0, cut=True)
    except Exception:  # a patched program that raises in the middle of training is one that broke
        if patch is None:
            raise
        return Course((), None, 0.0)
