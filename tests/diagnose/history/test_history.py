"""A run as columns: the same numbers as its Flows, and a loss told from its noise."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

from evenflow.diagnose.history import History, LossCurve
from evenflow.diagnose.history.grid import grids
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.flow import Role, Run
from evenflow.measure import measure
from tests.diagnose.runs import ADAM, SGD, Output, Weight, run


def test_a_column_holds_what_the_flows_hold() -> None:
    made = run(
        7,
        Output("0", size=lambda step: 1.0 + step),
        Output("1", "ReLU", dead=lambda step: step / 10),
        Weight("0.weight", weight=0.5, update=lambda step: 0.01 * (step + 1)),
        every=2,
    )
    history = History(made)
    assert history.steps.tolist() == [0, 2, 4, 6]
    for role, grid in history.grids.items():
        for i, (_, flow) in enumerate(made.flows()):
            rows = flow.select(role)
            assert grid.labels == tuple(row.site.path for row in rows)
            assert grid.rms[i].tolist() == pytest.approx([row.stats.rms for row in rows if row.stats])
            assert grid.norm[i].tolist() == pytest.approx([row.stats.norm for row in rows if row.stats])
    dead = history.grids[Role.ACTIVATION].dead_fraction
    assert np.isnan(dead[:, 0]).all()
    assert dead[:, 1].tolist() == [0.0, 0.2, 0.4, 0.6]
    labels, ratios = history.update_ratios()
    assert labels == ["0.weight"]
    assert ratios[:, 0].tolist() == pytest.approx([0.02, 0.06, 0.10, 0.14])
    assert history.largest_update_ratio(before=4) == pytest.approx(0.10)


def test_a_site_that_comes_later_is_unknown_before() -> None:
    early = run(3, Weight("a.weight")).table("flow")
    late = run(6, Weight("a.weight"), Weight("b.weight")).table("flow")
    late = late.filter(pc.greater_equal(late["step"], 3))
    grid = grids(pa.concat_tables([early, late]))[Role.PARAMETER]
    assert grid.labels == ("a.weight", "b.weight")
    assert np.isnan(grid.rms[:3, 1]).all()
    assert np.isfinite(grid.rms[3:]).all()


def test_roles_by_the_first_part_of_a_name() -> None:
    made = run(
        30, Weight("generator.0.weight"), Weight("discriminator.0.weight"),
        optimizer={"generator": ADAM, "discriminator": SGD}, models=["generator", "discriminator"],
        scalars={"loss/generator": lambda step: 1.0, "loss/discriminator": lambda step: 2.0},
    )  # fmt: skip
    history = History(made)
    assert history.is_adversarial
    assert history.learners == ()
    assert history.parameters("generator") == ["generator.0.weight"]
    assert history.loss("discriminator").end == 2.0
    assert history.has_second_moments("generator")
    assert history.is_sgd("discriminator")


def test_two_optimizers_of_one_model_share_its_loss() -> None:
    history = History(run(30, Weight("0.weight"), loss=lambda step: 1.0, optimizer={"0": ADAM, "1": SGD}))
    assert not history.is_adversarial
    assert history.loss("1").name == "loss"
    assert history.parameters("1") == ["0.weight"]


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (run(30), "the run has no loss: log it with run.log(loss=...)"),
        (run(9, loss=lambda step: 1.0), "9 losses are too few to judge a curve; 20 are needed"),
        (run(30, loss=lambda step: math.nan), "the loss was never a number (see EF702)"),
    ],
)
def test_without_a_loss_it_cannot_be_judged(made: Run, text: str) -> None:
    with pytest.raises(CannotJudgeError) as error:
        History(made).loss()
    assert str(error.value) == text


def _curve(values: list[float]) -> LossCurve:
    return LossCurve("loss", np.arange(len(values)), np.array(values))


def test_noise_is_that_of_the_values_and_not_of_the_trend() -> None:
    draws = np.random.default_rng(0).normal(0.0, 0.1, 4000)
    assert _curve(draws.tolist()).noise == pytest.approx(0.1, rel=0.05)
    falling = np.linspace(5.0, 1.0, 4000) + draws
    assert _curve(falling.tolist()).noise == pytest.approx(0.1, rel=0.05)
    assert _curve(np.linspace(5.0, 1.0, 4000).tolist()).noise < 0.01


def test_what_shoots_up_at_once_and_comes_back_has_gained_nothing() -> None:
    curve = _curve([2.3, 40.0, 30.0, 20.0, 10.0] + [2.31, 2.3] * 50)
    assert curve.start == 2.3
    assert abs(curve.relative_fall) < 0.01
    assert not curve.learned
    assert curve.highest == 40.0


def test_a_noisy_curve_that_falls_has_learned_and_a_flat_one_has_not() -> None:
    draws = np.random.default_rng(1).normal(0.0, 0.2, 300)
    assert _curve((0.3 + 2.0 * np.exp(-np.arange(300) / 50) + draws).tolist()).learned
    flat = _curve((2.3 + draws).tolist())
    assert not flat.learned
    assert abs(flat.fall) < 3.0 * flat.error


def test_the_first_step_that_is_no_number() -> None:
    curve = _curve([1.0] * 20 + [math.nan] * 5)
    assert curve.first_unsound == 20
    assert curve.highest == math.inf
    assert curve.end == 1.0


def test_a_cross_entropy_gains_from_what_guessing_costs() -> None:
    logits, labels = 20.0 * torch.randn(256, 10), torch.randint(0, 10, (256,))
    first = {"": measure(nn.Linear(10, 10), logits, lambda y: nn.functional.cross_entropy(y, labels))}
    wide = run(100, Weight("0.weight"), Output("0", shape=(64, 10)), loss=lambda s: 8.0 if s < 3 else 1.5)
    known, unknown = History(wide, first), History(wide)
    assert known.gained(known.loss()) == pytest.approx(1.0 - 1.5 / math.log(10))
    assert not known.has_learned, "it knows little more than to give all classes alike"
    assert unknown.gained(unknown.loss()) == pytest.approx(1.0 - 1.5 / 8.0), "it may be another loss"
    assert unknown.has_learned
    low = run(100, Weight("0.weight"), Output("0", shape=(64, 10)), loss=lambda s: 2.0 if s < 3 else 0.9)
    assert History(low, first).gained(History(low, first).loss()) == pytest.approx(0.55)
    assert History(low, first).has_learned
