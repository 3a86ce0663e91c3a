"""The search for a fix of a script: a scout, then trials."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from evenflow.check import Report
from evenflow.errors import EvenflowError
from evenflow.fix.candidates import Candidate, left_out
from evenflow.fix.course import Course
from evenflow.fix.deadline import NEVER, Deadline, TimeUpError
from evenflow.fix.outcome import Outcome
from evenflow.fix.script.process import Script
from evenflow.fix.script.scout import Findings
from evenflow.fix.search import searched
from evenflow.fix.subject import Job
from evenflow.fix.track import Track, silently
from evenflow.flow import Flow
from evenflow.parallel import Workers
from evenflow.surgery import Patch

STEPS = 100
"""Of a trial: half of the 200 that a program has by default, as a script does not say how long it trains."""
SCOUT = "evenflow.fix.script.scout:Scout"
LOOK = 2
"""Length of the first run, in trials: rules that judge a training need to see some of it."""


@final
@dataclass(frozen=True, slots=True)
class OfScript:
    """A script to be mended; see :class:`evenflow.fix.subject.Subject`."""

    script: Script
    findings: Findings
    ignore: Collection[str] = ()
    deadline: Deadline = NEVER

    @property
    def report(self) -> Report:
        """What was found before."""
        return self.findings.report

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        """Those of the scout, but of the ignored remedies none."""
        kept = [one for one in self.findings.candidates if one.remedy not in self.ignore]
        return kept, self.findings.advice

    def screen(self, patch: Patch) -> str | None:
        """What the scout says; combinations are screened by their trials."""
        return self.findings.refuted.get(patch.to_json())

    def course(self) -> Callable[[Job], Course]:
        """A process for each trial."""
        return partial(self.script.course, deadline=self.deadline)

    def flow(self, patch: Patch) -> Flow | None:
        """The first batch as the scout measured it."""
        return self.findings.flows.get(patch.to_json())


def fix_script(
    script: Script,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    ignore: Iterable[str] = (),
    minutes: float | None = None,
    workers: Workers | None = None,
    track: Track = silently,
) -> Outcome:
    """Find the smallest change that makes a script train better, and prove it.

    Args:
        script: What is ill; one that is healthy is left alone.
        seeds: Numbers of the draws: 0 is the script as it seeds itself, with others
            its seeds are shifted (see :mod:`evenflow.scripts.seeds`).
        steps: Length of the longest trial; the first look is twice as long.
        ignore: Names of remedies to leave out.
        minutes: How long all of it may take; then the search ends as after Ctrl-C. No limit by default.
        workers: Who runs the trials; each is a process of its own in any case.
        track: Is told how far the search is.

    Raises:
        ScriptError: The script fails as it is, or trains nothing.
        EvenflowError: ``ignore`` names no remedy, or the first look took all of the time.
    """
    ignore, deadline = left_out(ignore), Deadline.after(minutes)
    with tempfile.TemporaryDirectory(prefix="evenflow-scout-") as name:
        folder = Path(name)
        try:
            for _ in track("watching the script", [0], 1):
                result = script.run(SCOUT, None, seeds[0], LOOK * steps, folder, deadline)
        except TimeUpError:
            raise EvenflowError(
                f"The first look at {script.name} takes {LOOK * steps} steps, and longer than {minutes:g} "
                "minutes. Allow more time, or take fewer steps for a trial."
            ) from None
        script.check(result, folder)
        findings: Findings = pickle.loads((folder / "findings.pkl").read_bytes())
    if findings.report.healthy:
        return Outcome(findings.report)
    return searched(
        OfScript(script, findings, ignore, deadline),
        tuple(seeds),
        steps,
        workers or Workers(),
        track,
        deadline=deadline,
    )
