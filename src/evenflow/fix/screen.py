"""Before anything is trained: does a patch fit, and is the flow on one batch any better?

A patch that cannot be applied says why. One that leaves a gradient NaN, infinite
or zero everywhere is refuted. Where the alarm was about gradients that vanish or
explode, so is one that makes their end-to-end gain worse, unless it shuts branches on
purpose, or standardises inputs or targets: then the gain is in other units. Where it was
that the early steps of a sequence are not felt, so is one that leaves it so: until a net feels
them its loss stays where it is, and a short trial would see no difference.
"""

from __future__ import annotations

import math

import torch

from evenflow.diagnose import Symptom
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.rules.vanishing_through_time import VanishingThroughTime
from evenflow.errors import EvenflowError
from evenflow.fix.remedy import Case
from evenflow.flow import Flow, Role
from evenflow.measure.first import first_flows
from evenflow.surgery import Fixup, InsertSkip, Patch, StandardiseInput, StandardiseTarget

WORSE = 0.5
"""Decades by which an end-to-end gain may be worse, for one draw of the weights moves it as well:
β of a 50-layer ReLU net of 128 units is 2, ±.6 decades (evenflow.theory.chains)."""

LONGER = 2.0
"""Times as many time steps as before must be felt, if most still are not: a judgement; one draw of the
weights moves their number by a few per cent."""

_ABOUT_GRADIENTS = frozenset({Symptom.VANISHING_GRADIENT, Symptom.EXPLODING_GRADIENT})


def screen(case: Case, patch: Patch) -> str | None:
    """Why a patch is not worth a trial; None if it is."""
    try:
        program = patch.program(case.program)
        if patch.touches <= {"optimizer"}:  # its first batch flows as it did
            with torch.random.fork_rng(devices=[]):
                program.start()
            return None
        flows = first_flows(program)
    except EvenflowError as error:
        return f"It does not fit: {error}"
    except Exception as error:
        return f"The patched program raised {type(error).__name__}: {error}"
    if "model" not in patch.touches:
        return None
    for role, flow in flows.items():
        if (fault := _fault(flow)) is not None:
            return fault
        before = case.report.flows.get(role)
        if before is None:
            continue
        was, now = _felt(before), _felt(flow)
        if was < 1.0:  # the end-to-end gain crosses a recurrence once, not step by step
            only = {finding.code for finding in case.findings} == {VanishingThroughTime.code}
            if only and now < min(1.0, LONGER * was):
                return (
                    f"On one batch the loss feels {now:.0%} of the time steps, {was:.0%} without the patch."
                )
        elif case.symptoms & _ABOUT_GRADIENTS and not (_starts_shut(patch) or _rescales(patch)):
            was, now = _gain(before), _gain(flow)
            if now > was + WORSE:
                return (
                    f"On one batch the gradient changes by {now:.1f} decades through the net, "
                    f"{was:.1f} without the patch."
                )
    return None


def _starts_shut(patch: Patch) -> bool:
    """Whether branches start at 0 on purpose: inside them no gradient is, until the first step opens them."""
    return any(
        isinstance(edit, Fixup) or (isinstance(edit, InsertSkip) and edit.start == 0.0)
        for edit in patch.edits
    )


def _rescales(patch: Patch) -> bool:
    """Whether inputs or targets are in other units: then so are the gradients at the net's two ends."""
    return any(isinstance(edit, (StandardiseInput, StandardiseTarget)) for edit in patch.edits)


def _fault(flow: Flow) -> str | None:
    gradients = flow.stats(Role.PARAMETER_GRADIENT)
    broken = [name for name, stats in gradients.items() if stats.nonfinite_count]
    if broken:
        return f"On one batch the gradient of {broken[0]} is NaN or infinite."
    if not gradients or not any(stats.mean_square > 0 for stats in gradients.values()):
        return "On one batch every gradient is zero."
    return None


def _felt(flow: Flow) -> float:
    """Share of the time steps of the worst recurrence that the loss feels, if they are few; else 1."""
    try:
        findings = list(VanishingThroughTime().check(flow))
    except CannotJudgeError:  # gradients that are no numbers
        return 1.0
    return min((1.0 - (finding.evidence[0].value or 0.0) for finding in findings), default=1.0)


def _gain(flow: Flow) -> float:
    """|log10| of what the gradient's norm gains from the loss's end to the input's."""
    return abs(math.fsum(link.log10_gain for link in flow.budget("op")))
