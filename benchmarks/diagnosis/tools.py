"""The tools under test, each as a function from a program to what it would show its user as a warning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.diagnosis.observe import story

from evenflow import Program, Report, check


@dataclass(frozen=True)
class Verdict:
    """What a tool says.

    Attributes:
        symptoms: In the tool's order, in evenflow's words.
        causes: Likewise, most credible first.
        places: Where it sees them; empty for tools that name none.
        skipped: What could not be judged.
        story: What evenflow reported and saw, in lines.
    """

    symptoms: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    story: tuple[str, ...] = ()


Tool: TypeAlias = Callable[[Program, int], Verdict]
"""(program, seed) → verdict. It trains the program once."""


def evenflow_tool(program: Program, seed: int) -> Verdict:
    """What ``evenflow.check`` says of a program."""
    return verdict_of(check(program, seed=seed))


def verdict_of(report: Report) -> Verdict:
    """The alarms of a report."""
    alarms = report.diagnosis.alarms
    return Verdict(
        symptoms=tuple(dict.fromkeys(finding.symptom.value for finding in alarms)),
        causes=tuple(cause.name.value for cause in report.diagnosis.causes),
        places=tuple(dict.fromkeys(finding.site for finding in alarms)),
        skipped=tuple(
            f"{skip.code}: {skip.reason}" for skip in report.diagnosis.skipped if "failed" in skip.reason
        ),
        story=tuple(story(report)),
    )
