"""A rule: what it looks for, how it judges, and the page that explains it.

One rule is one file in :mod:`evenflow.diagnose.rules`. It holds its numbers
with their sources (:class:`Threshold`), its explanation (:class:`Page`) and its
check, so that what ``evenflow explain`` says is what the code does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evenflow.diagnose.finding import CauseName, Finding, Symptom

if TYPE_CHECKING:
    from evenflow.diagnose.history import History
    from evenflow.flow import Flow


class CannotJudgeError(Exception):
    """The Flow lacks what a rule reads; the text says what. Becomes a ``Skipped``, never reaches the user."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that a rule compares with.

    Attributes:
        value: The number.
        meaning: What is compared with it, unit included.
        source: A derivation or a citation.
    """

    value: float
    meaning: str
    source: str


@dataclass(frozen=True, slots=True)
class Page:
    """The explanation of a rule; every field is Markdown.

    Attributes:
        what: What the user sees.
        why: How it comes about.
        mathematics: The formulas behind it.
        detection: How it is told from healthy programs; the thresholds are
            listed below it by themselves.
        remedies: What to do.
        references: One work a line.
    """

    what: str
    why: str
    mathematics: str
    detection: str
    remedies: str
    references: tuple[str, ...]


class Rule(ABC):
    """Looks for one thing in a Flow. Subclasses are final and have no state.

    Attributes:
        code: ``EF`` and three digits: 1xx gradients, 2xx activations, 3xx initial
            weights, 4xx architecture, 5xx wiring, 6xx optimisation, 7xx numerics, 8xx adversarial training.
        name: What it finds, in the vocabulary of symptoms and causes.
        symptom: The symptom of its findings.
        summary: One line.
        causes: The causes that it may name.
        thresholds: All numbers that it compares with.
        page: The explanation.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    symptom: ClassVar[Symptom]
    summary: ClassVar[str]
    causes: ClassVar[tuple[CauseName, ...]]
    thresholds: ClassVar[tuple[Threshold, ...]]
    page: ClassVar[Page]

    @abstractmethod
    def check(self, flow: Flow) -> Iterator[Finding]:
        """Judge one step.

        Args:
            flow: Predicted or measured.

        Yields:
            Findings, in forward order.

        Raises:
            CannotJudgeError: The Flow lacks the rows or columns that the rule reads.
        """


class RunRule(Rule):
    """Looks for one thing in a whole run: in what changes, or fails to change, from step to step."""

    def check(self, flow: Flow) -> Iterator[Finding]:
        """A single step tells nothing of what happens over steps.

        Raises:
            CannotJudgeError: Always.
        """
        raise CannotJudgeError("it judges whole runs, not single steps")

    @abstractmethod
    def check_run(self, history: History) -> Iterator[Finding]:
        """Judge a run.

        Args:
            history: The run, by columns.

        Yields:
            Findings, most important first.

        Raises:
            CannotJudgeError: The run lacks what the rule reads.
        """
