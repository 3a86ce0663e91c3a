"""Pictures and tables of a search, from results that are made up."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from evenflow import check
from evenflow.cli.fix.page import render_page
from evenflow.cli.fix.pictures import pictures
from evenflow.cli.fix.table import cells, drawn, ranked, verdict
from evenflow.fix import Outcome, Refuted, Tried
from evenflow.lab.picture import Axis, Curve, Lines
from evenflow.surgery import Patch, SetLearningRate, SwapActivation

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def _outcome() -> Outcome:
    def net(act: type[nn.Module], depth: int = 4) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(6, 6), act())])

    before, after = check(net(nn.Sigmoid, 20), X), check(net(nn.ReLU), X)
    good = Tried(
        Patch(SwapActivation(to="relu")),
        "rectify",
        "saturating <activation>",
        2,
        (-2.0, -2.1),
        (-0.5, -0.6),
        0.1,
        ((2.0, 2.0), (2.1, math.nan)),
        ((1.0, 0.1), (1.0, 0.01)),
        flow=after.flow,
    )
    bad = Tried(
        Patch(SetLearningRate(factor=2.0)),
        "speed_up",
        "",
        2,
        (-2.0, -2.1),
        (-3.0, -3.1),
        0.1,
        ((1.0,), (2.0,)),
    )
    refuted = Refuted(Patch(SetLearningRate(factor=9.0)), "speed_up", "After 10 steps: 9 <b>")
    return Outcome(before, (good,), (bad, good), (refuted,), ("write it anew",))


def test_pictures_show_both_sides() -> None:
    outcome = _outcome()
    loss, gradient = pictures(outcome, outcome.patches[0])
    without, patched = loss.curves
    assert without.x == (0.0,), "a step at which a loss was NaN has no mean"
    assert patched.y == (0.0, -1.5), "log10, averaged over the seeds"
    assert patched.low is not None
    assert patched.high is not None
    assert patched.low[1] < -1.5 < patched.high[1]
    assert [curve.x[0] for curve in gradient.curves] == [0.0, 0.0]
    assert [curve.x[-1] for curve in gradient.curves] == [1.0, 1.0]
    assert gradient.curves[0].y != gradient.curves[1].y


def test_the_terminal_draws_them() -> None:
    outcome = _outcome()
    loss, _ = pictures(outcome, outcome.patches[0])
    lines = [line.plain for line in drawn(loss, ascii_only=True)]
    assert lines[1] == "Loss of the trials"
    assert lines[2].startswith("without the patch")
    assert lines[3].endswith("1.0e+00 -> 3.2e-02")
    assert all(line.isascii() for line in lines)


def test_a_long_trial_is_drawn_in_one_line_of_80_columns() -> None:
    falling = Curve("without the patch", tuple(map(float, range(500))), tuple(-i / 100 for i in range(500)))
    picture = Lines("loss", "Loss", "", Axis("step"), Axis("loss", decades=True), (falling,))
    assert [len(line.plain) for line in drawn(picture, ascii_only=True)][2] in range(70, 81)


def test_the_page_holds_everything() -> None:
    page = render_page(_outcome(), "train.py <x>", "def edit_model(model): ...")
    assert "train.py &lt;x&gt;" in page
    assert "saturating &lt;activation&gt;" in page
    assert "9 &lt;b&gt;" in page
    assert "write it anew" in page
    assert "def edit_model(model): ..." in page
    assert page.count('class="frame" id="picture-') == 2
    assert "http-equiv" in page


def test_tables() -> None:
    outcome = _outcome()
    assert [str(one.verdict) for one in ranked(outcome)] == ["confirmed", "refuted"]
    assert cells(outcome.patches[0])["change"] == outcome.patches[0].patch.describe()
    assert verdict(outcome).endswith(": confirmed.")
    assert verdict(Outcome(outcome.report)).startswith("No patch was confirmed.")
    same = ((1.0, 2.0), (1.0, 2.0))
    alike = Tried(Patch(), "", "", 2, (-2.0, -2.0), (-1.0, -1.0), 0.0, same, same)
    assert alike.seedless
    assert cells(alike)["verdict"] == "inconclusive"
    assert cells(alike)["gain"] == "–"
    lost = replace(alike, losses_before=(), baseline=(-1e6, -1e9), patched=(-1.0, -1.01))
    assert cells(lost)["gain"].startswith("above 20"), "20.11 and 20.1 more than where it counts as lost"
