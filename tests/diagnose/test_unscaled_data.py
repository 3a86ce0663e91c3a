"""EF610: data of the wrong size, where training suffers from it."""

from __future__ import annotations

import math

import torch

from evenflow.diagnose import CauseName
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import alarms, clusters, curve, net, only, squared, train

RULE = "EF610"


def _run(start: float, end: float, output: float = 1.0, first: float = 1.0) -> list[CauseName]:
    made = run(
        100,
        Weight("0.weight", weight=1.0 / 32**0.5),  # √fan_in · rms = 1: its output is as large as its input
        Output("0", size=first),
        Output("1", size=output, shape=(64, 1)),
        loss=lambda s: start + (end - start) * s / 100,
    )
    return [cause.name for finding in alarms(made, RULE) for cause in finding.causes]


def test_the_sizes_and_the_loss_decide() -> None:
    assert _run(1e4, 9e3) == [CauseName.UNSCALED_TARGET]
    assert _run(1e4, 1e3) == [], "training copes"
    assert _run(1e4, 9e3, output=50.0) == [], "outputs of 50 may well miss by 100"
    assert _run(2.0, 1.9, first=130.0) == [CauseName.UNSCALED_INPUT]
    assert _run(2.0, 1.9, first=3.0) == []


def test_a_loss_that_is_a_sum_over_the_batch_says_nothing_of_targets() -> None:
    assert _run(64 * math.log(2.0), 40.0, output=0.1) == [], "64 answers of one output each, guessed"
    assert _run(1000.0, 900.0, output=0.1) == [CauseName.UNSCALED_TARGET]


def test_targets_in_the_hundreds() -> None:
    model = net(inputs=8, outputs=1)
    data = curve(scale=300.0, offset=1000.0)
    finding = only(train(model, torch.optim.Adam(model.parameters(), 1e-3), data, squared), RULE)
    assert finding.causes[0].name is CauseName.UNSCALED_TARGET


def test_pixels_that_adam_copes_with() -> None:
    x, y = clusters()
    model = net()
    made = train(model, torch.optim.Adam(model.parameters(), 1e-3), (255.0 * x, y))
    assert alarms(made, RULE) == []
