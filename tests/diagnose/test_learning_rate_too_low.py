"""EF605: a straight, slow fall with tiny updates."""

from __future__ import annotations

import math

import torch

from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import alarms, classify, only

RULE = "EF605"
HEAD = Output("2", shape=(64, 10))


def test_all_of_the_marks_are_needed() -> None:
    slow = Weight("2.weight", gradient=1e-3, update=5e-6)  # 1024 entries: 5e-6 of the loss a step at most
    fast = Weight("2.weight", gradient=1e-3, update=5e-3)
    assert only(run(200, slow, HEAD, loss=lambda s: 2.3 - s / 1000), RULE).severity.is_alarm
    assert alarms(run(200, fast, HEAD, loss=lambda s: 2.3 - s / 1000), RULE) == []
    assert alarms(run(200, slow, HEAD, loss=lambda s: 2.3 - s / 200), RULE) == [], "it falls by half"
    levels_off = run(200, slow, HEAD, loss=lambda s: 2.1 + 0.2 * math.exp(-s / 20))
    assert alarms(levels_off, RULE) == [], "it is at the end of its way"


def test_plain_sgd_with_a_hundredth_of_its_learning_rate_and_with_all_of_it() -> None:
    assert only(classify(lambda p: torch.optim.SGD(p, 5e-4), batch=0), RULE).severity.is_alarm
    assert alarms(classify(lambda p: torch.optim.SGD(p, 1e-1), batch=0), RULE) == []


def test_a_short_run_is_judged_by_all_of_its_steps_together() -> None:
    def short(update: float) -> bool:
        weight = Weight("2.weight", gradient=1e-3, update=update)  # 30 steps: 6 % and 60 % of its size .1
        return bool(alarms(run(30, weight, HEAD, loss=lambda s: 2.3 - s / 300), RULE))

    assert short(2e-4)
    assert not short(2e-3)
