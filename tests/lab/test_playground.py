"""Nets with knobs: expected against measured, and settings that cannot be."""

from __future__ import annotations

import math
import statistics

import pytest

from evenflow.lab.playground import FeedForward, Net, Recurrent, SettingError
from evenflow.lab.playground.control import Slider


@pytest.mark.parametrize(
    ("net", "decades"),
    [
        # The tolerance is that of the mean of 4 nets, 2 √(β/4)/(2 ln 10), with β = 5 L/n for ReLU
        # (theory/chains.py).
        (FeedForward(), 0.2),
        (FeedForward(depth=15, activation="relu", init="he"), 0.35),
        (FeedForward(depth=15, activation="tanh", init="orthogonal", gain=1.3, bias_std=0.2), 0.1),
        (FeedForward(depth=15, activation="relu", norm="batch"), 0.1),
        (FeedForward(depth=15, activation="silu", init="he", bias_std=0.3, norm="layer"), 0.35),
        (FeedForward(depth=10, activation="relu", init="he", skips="plain"), 0.2),
        (FeedForward(depth=10, activation="gelu", norm="batch", skips="scaled"), 0.1),
        (FeedForward(depth=10, activation="gelu", init="he", skips="skipinit"), 1e-6),
        # Over time the closed form is within 3 % of the rate (experiment sequence-length) ...
        (Recurrent(cell="gru", steps=20, init="orthogonal"), 0.4),
        (Recurrent(cell="lstm", steps=20, forget_bias=1.0), 0.4),
        (Recurrent(cell="rnn", steps=20, init="normal", gain=2.0), 0.4),
    ],
    ids=str,
)
def test_expected_is_what_real_nets_show(net: Net, decades: float) -> None:
    measured = [net.measured(seed) for seed in range(4)]
    expected = net.expected()
    assert {len(profile.levels) for profile in measured} == {len(expected.levels)}
    assert expected.levels[-1] == 0.0
    for place in (0, len(expected.levels) // 2):
        real = statistics.fmean(profile.levels[place] for profile in measured)
        assert real == pytest.approx(expected.levels[place], abs=decades)


def test_the_same_seed_gives_the_same_net() -> None:
    net = FeedForward(depth=4, width=16)
    assert net.measured(3) == net.measured(3) != net.measured(4)


def test_the_band_of_a_plain_chain_holds_single_nets() -> None:
    net = FeedForward(depth=10, activation="relu", init="he")
    expected = net.expected()
    assert expected.low is not None
    assert expected.high is not None
    inside = [expected.low[0] <= net.measured(seed).total <= expected.high[0] for seed in range(20)]
    assert sum(inside) >= 17  # 95 % of 20 is 19; 16 or fewer would be a chance of 0.3 %
    assert expected.high[0] - expected.low[0] < 2


def test_a_gradient_below_float32_is_measured_as_gone() -> None:
    net = FeedForward(depth=80, width=32)
    assert net.measured().total == -math.inf
    assert net.expected().total == pytest.approx(-65, abs=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": "x"}, "depth: expected a number from 2 to 200, got 'x'."),
        ({"depth": "1e9"}, "depth: expected 2 to 200, got 1e+09."),
        ({"depth": "nan"}, "depth: expected 2 to 200, got nan."),
        ({"depth": 2.5}, "depth: expected a whole number, got 2.5."),
        ({"depth": True}, "depth: expected a number from 2 to 200, got True."),
        ({"norm": "instance"}, "norm: expected one of none, batch, layer, rms, group, got 'instance'."),
        ({"steps": 3}, "There is no setting 'steps' here. There are: depth, width,"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as error:
        FeedForward.of(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", [FeedForward, Recurrent])
def test_controls_and_settings_are_the_same(kind: type[Net]) -> None:
    start = kind()
    assert [control.name for control in kind.controls] == list(vars(start))
    assert kind.of(vars(start)) == start  # defaults lie within their ranges
    for control in kind.controls:
        if isinstance(control, Slider):
            steps = (getattr(start, control.name) - control.low) / control.step
            assert steps == pytest.approx(round(steps))  # a slider can come back to it


def test_idle_settings_change_nothing() -> None:
    assert FeedForward().idle == {"gain", "bias_std"}
    assert FeedForward(gain=3.0, bias_std=1.0).measured() == FeedForward().measured()
    assert FeedForward(gain=3.0, bias_std=1.0).expected() == FeedForward().expected()
    assert Recurrent(cell="gru", init="normal").idle == {"forget_bias"}
