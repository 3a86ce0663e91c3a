"""check: measure one batch, or a whole training, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, overload

import torch

from evenflow.diagnose import diagnose
from evenflow.diagnose.consequence import as_it_came
from evenflow.diagnose.finding import Diagnosis, Finding, Severity, Skipped
from evenflow.flow import Flow, Run
from evenflow.measure import measure
from evenflow.measure.first import first_flows
from evenflow.program import Program
from evenflow.trace.pairing import paired
from evenflow.trace.statistics import tensor_stats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenflow.intervene import Track


LEAST_WATCHING = 1.0
"""Seconds that watching a whole training may take in any case (a judgement)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        flow: The measured batch.
        diagnosis: Findings, worst first, and the rules that could not judge.
        predicted: The Flow predicted from the model alone; None if not predicted.
        run: The training that was watched; None if one batch was measured.
        flows: Of a program, the measured batch by the role whose loss it is.
    """

    flow: Flow
    diagnosis: Diagnosis
    predicted: Flow | None = None
    run: Run | None = None
    flows: Mapping[str, Flow] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, worst first."""
        return self.diagnosis.findings

    @property
    def healthy(self) -> bool:
        """Whether no finding is of severity ``warning`` or above."""
        return not self.diagnosis.alarms


@overload
def check(
    model: nn.Module,
    inputs: Any,
    loss: Callable[..., Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    confirm: float | bool = True,
    track: Track | None = None,
) -> Report: ...


@overload
def check(
    model: Program,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    seconds: float = 5.0,
    confirm: float | bool = True,
    track: Track | None = None,
) -> Report: ...


def check(
    model: nn.Module | Program,
    inputs: Any = None,
    loss: Callable[..., Tensor] | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    seconds: float = 5.0,
    confirm: float | bool = True,
    track: Track | None = None,
) -> Report:
    """Run one batch forward and backward, or a program's whole training, and judge it by the rules.

    Where there is an alarm, the suspected causes are tested: each is removed in a copy, and
    the copy is measured again (see :mod:`evenflow.intervene`). A healthy model costs nothing more.

    Args:
        model: Any module; it is left as it was (see :func:`evenflow.measure`).
            Or a :class:`~evenflow.program.Program`: then its first batch is
            measured, it is trained under watch, and both are judged.
        inputs: What the model is called with: a tensor, a tuple (positional
            arguments) or a mapping (named arguments).
        loss: From the model's output to a scalar; see :func:`evenflow.measure`. One
            that needs two arguments, like ``F.cross_entropy``, gets a target too:
            then ``inputs`` is the pair (inputs, target).
        select: Codes, prefixes of codes or names of the rules to apply; all by default.
        ignore: Rules to leave out, likewise.
        seed: For the random cotangent that stands in for a missing loss; of a
            program, for its weights, batches and draws.
        seconds: What looking may add to a program's training time, about. Measuring the first batch
            comes off it, but for :data:`LEAST_WATCHING`; an event of the run tells which steps were
            looked at.
        confirm: How many seconds testing the causes may take; True is 5, False or 0 tests none.
        track: Is told how far these tests are.

    Raises:
        ModelError: The model raised or gave nothing that has a gradient.
        LossError: The loss raised, is no scalar, or has no gradient.
        ProgramError: The parts of a program do not fit.
        EvenflowError: ``select`` or ``ignore`` names no rule.
    """
    select, ignore = ((words,) if isinstance(words, str) else tuple(words) for words in (select, ignore))
    tensor_stats(torch.zeros(1))  # loads compiled code, so that what follows times the batch alone
    began, thread_began = perf_counter(), thread_time()
    if isinstance(model, Program):
        flows = first_flows(model, seed)
        batch_seconds = perf_counter() - began
        left = max(seconds - (thread_time() - thread_began), min(seconds, LEAST_WATCHING))
        report = _trained(model, flows, select, ignore, seed, left)
    else:
        inputs, loss = paired(inputs, loss)
        flow = measure(model, inputs, loss, seed=seed)
        batch_seconds = perf_counter() - began
        report = Report(flow, diagnose(flow, select=select, ignore=ignore))
    if not confirm or report.healthy:
        return report
    from evenflow import intervene

    subject: intervene.Subject = (
        intervene.FirstBatch(model, seed, report.flows)
        if isinstance(model, Program)
        else intervene.OneBatch(model, inputs, loss, seed, report.flow)
    )
    limit = intervene.SECONDS if confirm is True else confirm
    tested = intervene.confirm(
        report.diagnosis, subject, seconds=limit, batch_seconds=batch_seconds, track=track
    )
    return replace(report, diagnosis=tested)


def _trained(
    program: Program,
    flows: Mapping[str, Flow],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    seed: int,
    seconds: float,
) -> Report:
    """What the rules say of a program's first batch and of its training, which happens here."""
    from evenflow.watch import watch_training

    run = watch_training(program, seed=seed, seconds=seconds)
    return judged(flows, run, select=select, ignore=ignore)


def judged(
    flows: Mapping[str, Flow], run: Run, *, select: Iterable[str] = (), ignore: Iterable[str] = ()
) -> Report:
    """What the rules say of a program that was seen before, in memory or on disk.

    Args:
        flows: Its first batch, as :func:`first_flows` gives it.
        run: Its training.
        select: Rules to apply; all by default.
        ignore: Rules to leave out.
    """
    select, ignore = tuple(select), tuple(ignore)
    first = [diagnose(flow, select=select, ignore=ignore) for flow in flows.values()]
    trained = diagnose(run, select=select, ignore=ignore, first=flows)
    said = [*(as_it_came(_without_passed(one, trained), trained, run, flows) for one in first), trained]
    return Report(next(iter(flows.values())), _joined(said), run=run, flows=flows)


def _without_passed(first: Diagnosis, trained: Diagnosis) -> Diagnosis:
    """What the first batch says, as a note where the training says that it got over it."""
    passed = {finding.code for finding in trained.findings if finding.passed}
    findings = [
        replace(finding, severity=Severity.NOTE, passed=True) if finding.code in passed else finding
        for finding in first.findings
    ]
    return replace(first, findings=tuple(findings))


def _joined(said: Iterable[Diagnosis]) -> Diagnosis:
    """All findings; of those of one rule at one place the worst."""
    severities = list(reversed(Severity))
    found: dict[tuple[str, str], Finding] = {}
    skipped: dict[tuple[str, str], Skipped] = {}
    for one in said:
        for finding in one.findings:
            known = found.setdefault((finding.code, finding.site), finding)
            if severities.index(finding.severity) < severities.index(known.severity):
                found[finding.code, finding.site] = finding
        skipped.update({(skip.code, skip.reason): skip for skip in one.skipped})
    findings = sorted(found.values(), key=lambda finding: severities.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(skipped.values()))
