"""What came of a fault of data or output: the symptom that training showed, and the near misses."""

from __future__ import annotations

import pytest
from torch import nn

from evenflow.check import judged
from evenflow.diagnose import CauseName, Finding, Severity, Symptom
from evenflow.diagnose.consequence import as_it_came
from evenflow.diagnose.finding import Cause, Diagnosis
from evenflow.flow import Flow, Run
from evenflow.measure import measure
from tests.diagnose.programs import batch, classify, glorot
from tests.diagnose.programs import mlp as network
from tests.diagnose.runs import Output, OverSteps, Weight, run

WEIGHTS = 0.1 * 32  # the norm of one weight of 32 x 32 entries


def _trained(
    end: float = 0.5, *, saturated: OverSteps = 0.1, dead: OverSteps = 0.0, norm: float = 1.0
) -> Run:
    return run(
        60,
        Weight("0.weight"),
        Output("0"),
        Output("1", "Sigmoid", saturated=saturated),
        Output("2"),
        Output("3", "ReLU", dead=dead),
        Output("4", shape=(64, 10)),
        loss=lambda s: 2.3 + (end - 2.3) * min(s / 20, 1.0),
        scalars={"gradient_norm_before_clipping": lambda s: norm * WEIGHTS if s == 3 else 1.0},
    )


def _fault(cause: CauseName, symptom: Symptom = Symptom.LOSS_NOT_DECREASING) -> Diagnosis:
    found = Finding("EF503", symptom, Severity.WARNING, "0", "", causes=(Cause(cause, 1.0, ""),))
    return Diagnosis((found,))


def _symptom(trained: Run, fault: Diagnosis = _fault(CauseName.UNSCALED_INPUT)) -> Symptom:  # noqa: B008
    (finding,) = as_it_came(fault, Diagnosis(), trained, {}).findings
    assert finding.severity is Severity.WARNING
    return finding.symptom


@pytest.mark.parametrize(
    ("shown", "near", "symptom"),
    [
        ({"norm": 1100.0}, {"norm": 900.0}, Symptom.EXPLODING_GRADIENT),
        ({"saturated": 0.51}, {"saturated": lambda s: 0.9 if s < 50 else 0.49}, Symptom.SATURATION),
    ],
)
def test_a_loss_that_fell_is_not_said_not_to_fall_where_something_else_was_measured(
    shown: dict[str, float], near: dict[str, float], symptom: Symptom
) -> None:
    assert _symptom(_trained(**shown)) is symptom
    assert _symptom(_trained(**near)) is Symptom.LOSS_NOT_DECREASING
    assert _symptom(_trained(end=1.5, **shown)) is Symptom.LOSS_NOT_DECREASING, "it fell by a third only"


def test_other_causes_and_symptoms_stay_as_they_are() -> None:
    assert _symptom(_trained(saturated=0.9), _fault(CauseName.FROZEN_OR_DETACHED)) is (
        Symptom.LOSS_NOT_DECREASING
    )
    dead = _fault(CauseName.UNSCALED_INPUT, Symptom.DEAD_UNITS)
    assert _symptom(_trained(saturated=0.9), dead) is Symptom.DEAD_UNITS


def _alarms(flow: Flow, trained: Run) -> dict[str, Symptom]:
    return {one.code: one.symptom for one in judged({"": flow}, trained).diagnosis.alarms}


def test_a_check_says_what_pixels_that_were_never_scaled_did() -> None:
    program = classify(network(2, nn.ReLU, glorot), 255 * batch())
    flow = measure(program.model, program.inputs, program.loss)
    assert _alarms(flow, _trained(dead=0.9))["EF503"] is Symptom.DEAD_UNITS
    assert _alarms(flow, _trained())["EF503"] is Symptom.LOSS_NOT_DECREASING
