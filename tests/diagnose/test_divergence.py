"""EF603: a loss that runs away and stays away."""

from __future__ import annotations

import math

import torch

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import alarms, classify, net, only

RULE = "EF603"
HEAD = Output("2", shape=(64, 10))


def test_a_loss_that_runs_away_names_what_moved_first() -> None:
    made = run(
        200,
        Weight("0.weight", update=lambda s: 1e-3 if s < 97 else 0.5),
        Weight("2.weight"),
        HEAD,
        loss=lambda s: 2.3 * math.exp(-s / 60) if s < 100 else 8.0,
    )
    finding = only(made, RULE)
    assert finding.severity is Severity.ERROR
    told = [evidence.text for evidence in finding.evidence]
    assert "It left its level at step 100." in told
    assert "What moved first: the update of 0.weight, at step 97." in told


def test_what_is_learned_and_lost_again_counts_and_a_catapult_does_not() -> None:
    lost = run(200, Weight("2.weight"), HEAD, loss=lambda s: 0.5 if 20 < s < 120 else 2.3)
    assert "ends at 1 times its start" in only(lost, RULE).message
    catapult = run(
        200, Weight("2.weight"), HEAD, loss=lambda s: 40.0 if 2 < s < 20 else 2.3 if s < 3 else 0.5
    )
    assert alarms(catapult, RULE) == []


def test_steps_that_grow_in_a_real_training() -> None:
    made = classify(
        lambda p: torch.optim.Adam(p, 1e-2), model=net(torch.nn.Tanh), steps=160,
        schedule=lambda s: 1.0 if s < 80 else 300.0,
    )  # fmt: skip
    finding = only(made, RULE)
    first = next(e for e in finding.evidence if e.text.startswith("What moved first"))
    assert first.value is not None
    assert 78 <= first.value <= 82
    assert CauseName.LEARNING_RATE_TOO_HIGH in {cause.name for cause in finding.causes}


def test_a_loss_that_rises_a_little_does_not_diverge() -> None:
    assert alarms(run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.3 + s / 1000), RULE) == []
