"""The numbers behind the pictures, against the Flow that they were read from."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import samples

from evenflow.flow import FORMATS, Flow, Role, Stats, Status
from evenflow.report.figures import (
    Omission,
    Reading,
    State,
    Step,
    View,
    abridge,
    curves,
    end_to_end,
    exponents_by_place,
    join,
    main_places,
    profile,
    spectrum,
    waterfall,
)


@pytest.mark.parametrize("role", [Role.ACTIVATION, Role.ACTIVATION_GRADIENT, Role.PARAMETER_GRADIENT])
def test_a_profile_shows_the_rms_of_every_place(role: Role) -> None:
    flow = samples.mlp(5)
    readings = profile(flow, role)
    assert {r.place: r.log10_rms for r in readings} == pytest.approx(
        {place: math.log10(rms) for place, rms in flow.rms(role).items()}
    )
    assert [r.place for r in readings] == list(flow.rms(role))
    assert {r.state for r in readings} == {State.FINITE}


def test_what_has_no_level_is_named() -> None:
    states = {r.place: r for r in profile(samples.non_finite(), Role.ACTIVATION_GRADIENT)}
    assert {place: r.state for place, r in states.items()} == {
        "0": State.NON_FINITE,
        "1": State.ZERO,
        "2": State.FINITE,
        "3": State.FINITE,
    }
    assert states["0"].nonfinite == pytest.approx((4096 - 300) / 4096)
    assert states["0"].log10_rms == pytest.approx(-2.0), "the finite entries still have a level"
    assert states["1"].log10_rms is None


def test_a_place_that_no_gradient_reached_is_in_the_list() -> None:
    flow = samples.residual(2)
    assert "embed" not in flow.rms("activation_gradient")
    first = profile(flow, Role.ACTIVATION_GRADIENT)[0]
    assert (first.place, first.kind, first.state, first.status) == (
        "embed",
        "Linear",
        State.ABSENT,
        Status.DETACHED,
    )
    parameters = {r.place: r for r in profile(flow, Role.PARAMETER_GRADIENT)}
    assert parameters["embed.weight"].status is Status.FROZEN
    assert parameters["spare.weight"].status is Status.UNUSED


def test_the_main_line_is_the_chain() -> None:
    readings = {r.place: r for r in profile(samples.residual(3), Role.ACTIVATION_GRADIENT)}
    assert readings["blocks.2:add"].main
    assert not readings["blocks.2.fc"].main, "a branch of a residual block"
    assert all(r.main for r in profile(samples.mlp(3), Role.ACTIVATION))


def test_predicted_places_carry_their_interval() -> None:
    (reading, *_) = profile(samples.mlp(3, predicted=True), Role.ACTIVATION_GRADIENT)
    assert reading.half_width == 0.2


def test_a_long_profile_is_seen_by_layers_with_parameters_or_by_blocks() -> None:
    flow = samples.mlp(20)
    assert main_places(flow, Role.ACTIVATION_GRADIENT, 50)[0] is View.ALL
    view, readings = main_places(flow, Role.ACTIVATION_GRADIENT, 25)
    assert view is View.HOLDERS
    assert {r.kind for r in readings} == {"Linear"}
    assert len(readings) == 20
    flow = samples.residual(12)
    view, readings = main_places(flow, Role.ACTIVATION_GRADIENT, 20)
    assert view is View.BLOCKS
    assert [r.place for r in readings] == ["embed", *(f"blocks.{i}" for i in range(12)), "head"]
    assert readings[3].kind == "Block"
    output = next(
        row.stats
        for row in flow.select("activation_gradient")
        if row.site.label == "blocks.2:add" and row.stats
    )
    assert readings[3].log10_rms == output.log10_rms, "the output of the block, not of its last layer"


def test_the_middle_is_left_out_but_not_what_matters() -> None:
    readings = [Reading(str(i), str(i), "", State.FINITE, -i / 10) for i in range(100)]
    readings[40] = Reading("40", "40", "", State.ZERO)
    lines = abridge(readings, 16, keep={"70"})
    shown = [line.place for line in lines if isinstance(line, Reading)]
    assert shown == ["0", "1", "2", "3", "40", "41", "70", "96", "97", "98", "99"]
    gaps = [line for line in lines if isinstance(line, Omission)]
    assert [len(gap.readings) for gap in gaps] == [36, 28, 25]
    assert gaps[0].span == (-3.9, -0.4)
    assert abridge(readings, 100) == tuple(readings)


@given(count=st.integers(1, 300), limit=st.integers(4, 60), striking=st.sets(st.integers(0, 299)))
def test_abridging_loses_nothing_and_stays_short(count: int, limit: int, striking: set[int]) -> None:
    readings = [Reading(str(i), "", "", State.FINITE, 0.0) for i in range(count)]
    lines = abridge(readings, limit, {str(i) for i in striking})
    unfolded = [r for line in lines for r in (line.readings if isinstance(line, Omission) else (line,))]
    assert unfolded == readings
    assert sum(isinstance(line, Reading) for line in lines) <= limit


@pytest.mark.parametrize("limit", [5, 16, 1000])
@pytest.mark.parametrize("flow", [samples.mlp(20), samples.residual(12), samples.lstm(5)])
def test_the_steps_of_a_waterfall_join_up_to_the_whole_way(flow: Flow, limit: int) -> None:
    fall = waterfall(flow, limit)
    assert len(fall.steps) <= limit
    for step, after in pairwise(fall.steps):
        assert step.log10_after == after.log10_before
    chain = flow.chain("activation_gradient")
    ends = [row.stats.log10_norm for row in (chain[0], chain[-1]) if row.stats is not None]
    assert fall.total == pytest.approx(ends[0] - ends[1], abs=1e-12)
    assert fall.total == end_to_end(flow)
    assert math.fsum(step.log10_gain for step in fall.steps) == pytest.approx(fall.total, abs=1e-9)
    assert math.fsum(share.log10_gain for share in fall.shares) == pytest.approx(fall.total, abs=1e-9)
    assert sum(step.links for step in fall.steps) == fall.links


def test_shares_say_which_kind_of_layer_takes_the_gradient() -> None:
    fall = waterfall(samples.mlp(20), 1000)
    assert [(share.kind, share.links) for share in fall.shares] == [
        ("Sigmoid", 19),
        ("Linear", 19),
        ("loss", 1),
    ]


def test_a_gradient_that_ends_is_a_step_to_zero() -> None:
    steps = {step.first: step for step in waterfall(samples.non_finite(), 10).steps}
    assert steps["2"].log10_gain == -math.inf
    assert steps["1"].log10_gain == math.inf
    assert waterfall(samples.non_finite(), 10).total == pytest.approx(-2.0 + math.log10(math.sqrt(300)))


def test_nothing_more_is_lost_once_all_is_lost() -> None:
    net = samples.Net()
    for level in (-math.inf, -math.inf, -3.0):
        net.op(str(net.order), "addmm", "Linear", 0.0, level)
    fall = waterfall(net.flow(), 10)
    assert [step.log10_gain for step in fall.steps] == [-math.inf, 0.0]
    assert fall.total == end_to_end(net.flow()) == -math.inf


def test_a_chain_of_one_op_has_no_waterfall() -> None:
    net = samples.Net()
    net.op("only", "addmm", "Linear", 0.0, 0.0)
    assert waterfall(net.flow(), 10).steps == ()
    assert waterfall(net.flow(), 10).total == 0.0
    assert end_to_end(net.flow()) is None
    assert end_to_end(Flow([], "measured")) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200), st.integers(2, 40))
def test_joined_runs_are_few_and_lose_nothing(gains: list[float], limit: int) -> None:
    levels = [0.0]
    for gain in gains:
        levels.append(levels[-1] + gain)
    steps = [Step(str(i), str(i), 1, a, b) for i, (a, b) in enumerate(pairwise(levels))]
    runs = join(steps, limit)
    assert len(runs) <= limit
    assert sum(run.links for run in runs) == len(steps)
    assert (runs[0].log10_before, runs[-1].log10_after) == (levels[0], levels[-1])
    assert all(a.log10_after == b.log10_before for a, b in pairwise(runs))


def test_a_uniform_chain_falls_into_as_many_equal_runs_as_allowed() -> None:
    steps = [Step(str(i), str(i), 1, -1.0 * i, -1.0 * (i + 1)) for i in range(100)]
    runs = join(steps, 20)
    assert [(run.links, run.log10_gain) for run in runs] == [(5, -5.0)] * 20
    assert (runs[1].first, runs[1].last) == ("5", "9")


def test_a_step_that_takes_much_stands_alone_among_runs() -> None:
    levels = [0.0, *(-0.01 * i for i in range(1, 50)), -9.0, *(-9.0 - 0.01 * i for i in range(1, 50))]
    steps = [Step(str(i), str(i), 1, a, b) for i, (a, b) in enumerate(pairwise(levels))]
    runs = join(steps, 10)
    assert min(runs, key=lambda run: run.log10_gain) == steps[49]


def test_curves_over_time() -> None:
    flow = samples.lstm(steps=30)
    hidden, cell = curves(flow)
    assert (hidden.state, cell.state) == ("lstm:hidden_l0", "lstm:cell_l0")
    assert [time for time, *_ in hidden.points] == list(range(30))
    assert {state for _, state, _ in hidden.points} == {State.FINITE}
    assert [hidden.points[i][2] for i in (0, -1)] == pytest.approx([-4.0 - 0.216 * 29, -4.0])
    assert curves(samples.mlp(2)) == ()


def test_a_spectrum_counts_every_entry_once() -> None:
    flow = samples.mlp(20)
    found = spectrum(flow, Role.ACTIVATION_GRADIENT)
    assert found is not None
    whole = Stats.merge_all(row.stats for row in flow.select("activation_gradient") if row.stats is not None)
    assert found.exponents == whole.exponents
    zero, fewer, infinite = found.lost["float16"]
    fp16 = FORMATS["float16"]
    below = [found.exponents.below(e) / found.exponents.total for e in (fp16.min_subnormal, fp16.min_normal)]
    assert (zero, zero + fewer, infinite) == pytest.approx((*below, 0.0))
    assert 0.5 < zero < 0.8
    assert spectrum(Flow([], "measured"), Role.ACTIVATION) is None


def test_stretches_of_the_exponent_map_are_exact_unions() -> None:
    flow = samples.mlp(20)
    parts = exponents_by_place(flow, Role.ACTIVATION_GRADIENT, 10)
    assert len(parts) <= 10
    assert parts[0][0] == "0"
    assert parts[-1][1] == "38"
    singles = flow.stats("activation_gradient").values()
    assert sum(stats.count for *_, stats in parts) == sum(stats.count for stats in singles)
