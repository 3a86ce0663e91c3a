"""EF602: swings that the steps make, and swings that batches make."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evenflow.diagnose import CauseName
from evenflow.diagnose.history import LossCurve
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import alarms, classify, curve, net, only, squared, train

RULE = "EF602"
HEAD = Output("2", shape=(64, 10))


def _swinging(low: float, high: float, rate: float) -> list[CauseName]:
    figures = {"lr": lambda s: rate, "gradient_norm_after_clipping": lambda s: 5.0}
    losses = [2.3, 2.3, 2.3] + 70 * [low, high, low]
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: losses[s], scalars=figures)
    return [cause.name for finding in alarms(made, RULE) for cause in finding.causes]


def test_swings_need_large_steps_and_no_progress() -> None:
    assert _swinging(1.5, 4.0, rate=1.0) == [CauseName.LEARNING_RATE_TOO_HIGH]
    assert _swinging(1.5, 4.0, rate=0.01) == [], "the steps are small: the batches make the noise"
    assert _swinging(2.2, 2.4, rate=1.0) == [], "that is no swing"
    assert _swinging(0.1, 1.6, rate=1.0) == [], "its level has halved: it gets on"


def test_adam_with_lr_1_on_a_regression() -> None:
    model = net(inputs=8, outputs=1)
    made = train(model, torch.optim.Adam(model.parameters(), 1.0), curve(), squared)
    assert only(made, RULE).causes[0].name is CauseName.LEARNING_RATE_TOO_HIGH


def test_one_sample_a_batch_is_noise() -> None:
    assert alarms(classify(lambda p: torch.optim.Adam(p, 1e-4), batch=1, steps=200), RULE) == []


def test_a_fine_tuning_that_swings_about_its_good_start_is_left_alone() -> None:
    def swinging(scale: float, update: float) -> list[CauseName]:
        """A single output, whose loss begins near nothing and leaps at once."""
        losses = [0.004, 0.04, 0.004] + 70 * [0.003, 0.009, 0.003]
        made = run(
            200,
            Weight("2.weight", update=lambda s: 5e-5 if s < 3 else update),
            Output("2", shape=(64, 1)),
            loss=lambda s: scale * losses[s],
        )
        return [cause.name for finding in alarms(made, RULE) for cause in finding.causes]

    assert swinging(1.0, 5e-6) == [], "below ln 2 from the start, by tiny steps"
    assert swinging(1000.0, 2e-4) == [CauseName.LEARNING_RATE_TOO_HIGH]


NOISE = np.random.default_rng(0).normal(0.0, 1.0, 400)


def _detours(swing: float, noise: float, period: float = 40.0, update: float = 5e-3) -> list[CauseName]:
    """A loss that comes down from 2 to 0.3, with swings and with noise on its way."""
    made = run(
        400,
        Weight("2.weight", update=update),
        HEAD,
        loss=lambda s: (
            0.3
            + 1.7 * math.exp(-s / 50)
            + swing * (1 + math.sin(2 * math.pi * s / period))
            + noise * abs(NOISE[s])
        ),
    )
    return [cause.name for finding in alarms(made, RULE) for cause in finding.causes]


def test_a_loss_that_comes_down_by_long_detours() -> None:
    assert _detours(swing=0.3, noise=0.05) == [CauseName.LEARNING_RATE_TOO_HIGH]
    assert _detours(swing=0.3, noise=0.2) == [CauseName.LEARNING_RATE_TOO_HIGH], "in spite of noise"
    assert _detours(swing=0.0, noise=0.6) == [], "however small the batches are"
    assert _detours(swing=0.03, noise=0.05) == [], "the edge of stability: mild"
    assert _detours(swing=0.3, noise=0.05, period=400.0) == [], "once is a catapult"
    assert _detours(swing=0.3, noise=0.05, update=8e-4) == [CauseName.LEARNING_RATE_TOO_HIGH], "20 x .8 %"
    assert _detours(swing=0.3, noise=0.05, update=4e-4) == [], "steps are small: the data come in an order"


@pytest.mark.parametrize("deviation", [0.1, 1.0])
def test_noise_does_not_carry_over_and_swings_do(deviation: float) -> None:
    level = 3.0 - np.arange(400) / 200
    steps = np.arange(400)
    noise = LossCurve("loss", steps, level + deviation * NOISE).swings
    assert -0.3 < noise.carried < 3.0 * noise.error, (
        "the falling curve follows it a little, never the reverse"
    )
    waves = LossCurve("loss", steps, level + 5.0 * deviation * np.sin(steps / 5)).swings
    assert waves.carried > 0.8
    assert waves.rises in (9, 10), "300 steps at 31 steps a wave"


def test_a_spike_that_lingers_is_no_habit() -> None:
    spike = np.where((np.arange(400) > 200) & (np.arange(400) < 220), 20.0, 0.0)
    curve = LossCurve("loss", np.arange(400), 2.0 + spike + 0.3 * NOISE)
    assert curve.swings.rises == 1
