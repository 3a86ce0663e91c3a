"""EF605: a straight, slow fall with tiny updates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import diagnose
from evenflow.measure import measure
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import alarms, classify, net, only, train

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


def test_in_a_short_run_the_size_of_the_steps_decides_where_the_loss_cannot() -> None:
    def short(update: float, **more: Any) -> bool:
        weight = Weight("2.weight", gradient=1e-3, update=update)
        return bool(alarms(run(15, weight, HEAD, loss=lambda s: 2.3 + 0.01 * (s % 2), **more), RULE))

    assert short(1e-6)
    assert not short(1e-2), "the loss could be at zero within five hundred such steps"
    assert not short(1e-6, scalars={"lr": lambda s: 1e-6 * (s + 1)}), "it warms up"


def test_a_schedule_that_ends_long_before_the_run_does() -> None:
    weight = Weight("2.weight", gradient=1e-2, update=lambda s: 1e-3 * 0.7**s)

    def ends(rate: Any, floor: float = 2.0) -> bool:
        loss = lambda s: floor + (2.3 - floor) * 0.8**s  # noqa: E731
        return bool(alarms(run(200, weight, HEAD, loss=loss, scalars={"lr": rate}), RULE))

    assert ends(lambda s: 1e-3 * 0.7**s)
    assert not ends(lambda s: 1e-3 * 0.7**s, floor=1.0), "the loss has halved"
    assert not ends(lambda s: 1e-3 * (1.0 + math.cos(math.pi * s / 200)))
    assert not ends(lambda s: 1e-3 * 0.1 ** max(s // 50 - 1, 0)), (
        "divided by ten at a half and three quarters"
    )


def _squares(model: nn.Module, target: Tensor, x: Tensor) -> bool:
    """Whether tiny steps are an alarm, where the loss is a mean squared error."""

    def squared(output: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(output, wanted)

    first = measure(model, x, lambda output: squared(output, target))
    made = train(model, torch.optim.SGD(model.parameters(), 1e-7), (x, target), squared, steps=60, batch=0)
    said = diagnose(made, select=(RULE, "EF601"), first={"": first})
    return bool(said.alarms)


def test_a_squared_error_is_fine_tuned_below_the_variance_of_its_targets_and_not_below_ln_2() -> None:
    x = torch.randn(256, 16)
    target = (x[:, :1] > 0.0).float()
    model = nn.Sequential(net(outputs=1), nn.Sigmoid())
    assert _squares(model, target, x), "it starts at .25, far below ln 2, and .25 is what guessing costs"
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()
    assert not _squares(model, target, x), "it knows its task"
