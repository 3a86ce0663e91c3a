"""What came of a fault: the first batch shows a cause, and only training shows what it did.

Rules of data and wiring see inputs off scale, or an output that cannot reach its targets,
before the first step, and name what such faults usually do: the loss does not fall. Where
training brought it down by more than half all the same, that is not what happened, and what
was measured takes its place: a gradient that outweighed the weights (EF106), activations on
their flat ends (EF201), rectifiers that died (EF202). How bad the fault is stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from evenflow.diagnose.finding import CauseName, Diagnosis, Evidence, Finding, Symptom
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.rules.dead_units import DeadUnits
from evenflow.diagnose.rules.gradient_outweighs_weights import OUTWEIGHS, over_weights
from evenflow.diagnose.rules.saturation import FLAT
from evenflow.diagnose.text import number, percent
from evenflow.flow import Flow, Role, Run

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

_OF_DATA_AND_OUTPUT = frozenset(
    {CauseName.UNSCALED_INPUT, CauseName.UNSCALED_TARGET, CauseName.WRONG_LOSS_OR_OUTPUT}
)


def as_it_came(first: Diagnosis, trained: Diagnosis, run: Run, flows: Mapping[str, Flow]) -> Diagnosis:
    """The findings of a first batch, with the symptoms that training showed.

    Args:
        first: What is said of the first batch.
        trained: What is said of the training.
        run: The training.
        flows: The first batch of each role.
    """
    if not any(map(_expects, first.findings)):
        return first
    shown = _shown(trained, run, flows)
    if shown is None:
        return first
    symptom, evidence = shown
    findings = tuple(
        replace(finding, symptom=symptom, evidence=(*finding.evidence, evidence))
        if _expects(finding)
        else finding
        for finding in first.findings
    )
    return replace(first, findings=findings)


def _expects(finding: Finding) -> bool:
    """Whether a finding of the first batch expects the loss not to fall, because of data or output."""
    causes = {cause.name for cause in finding.causes}
    return finding.symptom is Symptom.LOSS_NOT_DECREASING and bool(causes & _OF_DATA_AND_OUTPUT)


def _shown(trained: Diagnosis, run: Run, flows: Mapping[str, Flow]) -> tuple[Symptom, Evidence] | None:
    """What a training that brought the loss down shows instead; None if it did not, or shows nothing."""
    from evenflow.diagnose.history import History

    history = History(run, flows)
    try:
        fell = any(history.loss(role).learned for role in history.learners[:1])
    except CannotJudgeError:
        return None
    if not fell:
        return None
    return _exploded(history) or _saturated(history) or _died(trained)


def _exploded(history: History) -> tuple[Symptom, Evidence] | None:
    try:
        steps, ratios = over_weights(history, history.learners[0])
    except CannotJudgeError:
        return None
    if not (ratios > OUTWEIGHS.value).any():
        return None
    largest = float(ratios.max())
    step = int(steps[ratios.argmax()])
    text = (
        f"In training, at step {step}, the gradient's norm was {number(largest)} times that of all weights."
    )
    return Symptom.EXPLODING_GRADIENT, Evidence(text, largest, OUTWEIGHS.value)


def _saturated(history: History) -> tuple[Symptom, Evidence] | None:
    if not history.steps.size:
        return None
    last = history.flow(int(history.steps[-1])).select(Role.ACTIVATION)
    share, path = max(((row.saturated_fraction or 0.0, row.site.path) for row in last), default=(0.0, ""))
    if share <= FLAT.value:
        return None
    text = f"At the end of training {percent(share)} of the outputs of {path} are on its flat ends."
    return Symptom.SATURATION, Evidence(text, share, FLAT.value)


def _died(trained: Diagnosis) -> tuple[Symptom, Evidence] | None:
    """What EF202 says of the training, be it a note only."""
    found = next((one for one in trained.findings if one.code == DeadUnits.code and not one.passed), None)
    if found is None:
        return None
    return found.symptom, Evidence(f"In training: {found.message}")
