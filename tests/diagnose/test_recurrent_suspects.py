"""What a recurrence holds against itself where training suffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evenflow.diagnose import CauseName, Diagnosis, diagnose
from evenflow.diagnose.recurrence import TimeProfile
from evenflow.diagnose.recurrent_suspects import amplified
from evenflow.measure import measure
from tests.diagnose.programs import Sequence
from tests.diagnose.training import squared, train

GAIN, LONG = CauseName.RECURRENT_GAIN_TOO_LARGE, CauseName.LONG_RECURRENCE


def _profile(log10_norms: list[float]) -> float:
    return amplified(TimeProfile("cell", "hidden_l0", tuple(log10_norms)))


def test_what_grows_at_a_steady_pace_amplifies_and_what_a_loss_at_every_step_adds_up_does_not() -> None:
    steps = torch.arange(100, 0, -1).double()
    assert _profile((0.03 * steps).tolist()) == pytest.approx(2 * (0.03 * 50 - 0.301), abs=1e-3)
    assert _profile(steps.log10().tolist()) == pytest.approx(0.0, abs=0.02), "T equal parts, and no fault"
    assert _profile((-0.2 * steps).tolist()) < 0.0


def _said(cell: nn.RNN, lr: float, *, last: int) -> Diagnosis:
    """Of a short training to foretell the mean of what came last."""
    x = torch.randn(64, last, 4)
    model, y = nn.Sequential(Sequence(cell, 32), nn.Linear(10, 1)), x[:, -1].mean(-1)
    first = measure(model, x, lambda output: squared(output, y))
    made = train(model, torch.optim.SGD(model.parameters(), lr), (x, y), squared, steps=60, batch=0)
    return diagnose(made, select=("EF106", "EF6", "EF7"), first={"": first})


def _cell(init: str, gain: float, nonlinearity: str = "relu") -> nn.RNN:
    cell = nn.RNN(4, 32, nonlinearity=nonlinearity, batch_first=True)
    weight = cell.get_parameter("weight_hh_l0")
    if init == "eye":
        nn.init.eye_(weight).data.mul_(gain)
    elif init == "normal":
        nn.init.normal_(weight, std=gain / 32**0.5)
    return cell


def test_a_gain_above_one_is_named_before_the_rate_that_it_makes_too_high() -> None:
    causes = [cause.name for cause in _said(_cell("eye", 1.2), 0.05, last=30).causes]
    assert causes[:2] == [GAIN, CauseName.LEARNING_RATE_TOO_HIGH]


def test_a_recurrence_that_amplifies_and_trains_raises_no_alarm() -> None:
    assert _said(_cell("normal", 1.1, "tanh"), 0.1, last=8).alarms == ()


def test_a_plain_recurrence_that_forgets_is_named_where_the_loss_stays() -> None:
    assert LONG in [cause.name for cause in _said(_cell("default", 1.0, "tanh"), 1e-9, last=20).causes]
    assert LONG not in [cause.name for cause in _said(_cell("eye", 1.0, "tanh"), 1e-9, last=20).causes]
