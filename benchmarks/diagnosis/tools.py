"""The tools under test, each as a function from a program to what it would show its user as a warning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.diagnosis import kept
from benchmarks.diagnosis.observe import story

from evenflow import Program, Report, check
from evenflow.check import judged
from evenflow.measure.first import first_flows
from evenflow.watch import watch_training


@dataclass(frozen=True)
class Verdict:
    """What a tool says.

    Attributes:
        symptoms: In the tool's order, in evenflow's words.
        causes: Likewise, most credible first.
        trials: What came of each cause when it was removed in a copy: a verdict, or "not tested".
        places: Where it sees them; empty for tools that name none.
        skipped: What could not be judged.
        story: What evenflow reported and saw, in lines.
    """

    symptoms: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    story: tuple[str, ...] = ()


Tool: TypeAlias = Callable[[Program, int], Verdict]
"""(program, seed) → verdict. It trains the program once."""


def evenflow_tool(program: Program, seed: int) -> Verdict:
    """What ``evenflow.check`` says of a program."""
    return verdict_of(check(program, seed=seed))


def keeping(place: Path, training_seconds: float, metric: float | None) -> Tool:
    """The same, and what was seen is kept at ``place``."""

    def tool(program: Program, seed: int) -> Verdict:
        began = time.process_time()
        flows = first_flows(program, seed)
        watch_training(program, seed=seed, path=kept.fresh(place) / kept.TRAINING)
        seconds = time.process_time() - began
        kept.keep(place, flows, kept.Facts(training_seconds, seconds, metric, tuple(flows)))
        return verdict_of(judged(*kept.seen(place, flows)))

    return tool


def verdict_of(report: Report) -> Verdict:
    """The alarms of a report."""
    alarms = report.diagnosis.alarms
    return Verdict(
        symptoms=tuple(dict.fromkeys(finding.symptom.value for finding in alarms)),
        causes=tuple(cause.name.value for cause in report.diagnosis.causes),
        trials=tuple(
            "not tested" if cause.trial is None else cause.trial.verdict.value
            for cause in report.diagnosis.causes
        ),
        places=tuple(dict.fromkeys(finding.site for finding in alarms)),
        skipped=tuple(
            f"{skip.code}: {skip.reason}" for skip in report.diagnosis.skipped if "failed" in skip.reason
        ),
        story=tuple(story(report)),
    )
