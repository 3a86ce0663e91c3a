"""The Flow table: mappings, budget, Arrow and its readers."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from evenflow.flow import Flow, ModuleCall, Role, Row, Site, Stats, Status
from evenflow.flow.budget import block_of, common_path


def stats(rms: float, count: int = 4) -> Stats:
    return Stats(count, 0.0, rms**2, rms, 0, 0)


def op(order: int, path: str, name: str, rms: float, inputs: tuple[int, ...] = (), **more: object) -> Row:
    call = more.pop("call", 0)
    assert isinstance(call, int)
    site = Site(path, name, Role.ACTIVATION_GRADIENT, call)
    outputs = (ModuleCall(path, call),) if path and path != "<loss>" else ()
    return Row(site, order, "Linear", (2, 2), stats=stats(rms), inputs=inputs, output_of=outputs, **more)  # type: ignore[arg-type]


def parameter(order: int, name: str, status: Status = Status.OK) -> Row:
    site = Site(name, "parameter", Role.PARAMETER_GRADIENT)
    return Row(site, order, status=status, stats=stats(1.0) if status is Status.OK else None)


def example() -> Flow:
    rows = [
        op(3, "<loss>", "mse_loss", 1.0, (2,)),
        op(2, "blocks.1.fc", "addmm", 0.1, (1,)),
        op(1, "blocks.0", "add", 0.01, (0,)),
        op(0, "blocks.0.fc", "addmm", 0.0001),
        parameter(2, "blocks.1.fc.weight"),
        parameter(0, "blocks.0.fc.weight", Status.FROZEN),
    ]
    return Flow(rows, "measured", {"model": "Net"}, ["a note"])


def test_rows_and_mappings_come_in_forward_order() -> None:
    flow = example()
    assert [row.order for row in flow] == [0, 0, 1, 2, 2, 3]
    assert flow.rms("activation_gradient") == {
        "blocks.0.fc": pytest.approx(1e-4),
        "blocks.0:add": pytest.approx(0.01),
        "blocks.1.fc": pytest.approx(0.1),
    }
    assert list(flow.rms("activation_gradient", "op"))[-1] == "<loss>:mse_loss"
    assert flow.status() == {"blocks.0.fc.weight": Status.FROZEN, "blocks.1.fc.weight": Status.OK}


def test_calls_of_one_module_are_merged() -> None:
    flow = Flow([op(0, "fc", "addmm", 1.0), op(1, "fc", "addmm", 3.0, (0,), call=1)], "measured")
    assert flow.rms("activation_gradient") == {"fc": pytest.approx(math.sqrt(5.0))}
    assert list(flow.rms("activation_gradient", "op")) == ["fc:addmm", "fc#1:addmm"]


@pytest.mark.parametrize(
    ("level", "places"),
    [
        ("op", ["blocks.0:add", "blocks.1.fc:addmm", "<loss>:mse_loss"]),
        ("module", ["blocks.0", "blocks.1.fc", "<loss>"]),
        ("block", ["blocks.0", "blocks.1", "<loss>"]),
    ],
)
def test_the_budget_adds_up_at_every_level(level: str, places: list[str]) -> None:
    budget = example().budget(level)  # type: ignore[arg-type]
    assert [link.place for link in budget] == places
    assert [link.log10_gain for link in budget] == pytest.approx([-2.0, -1.0, -1.0])
    assert budget.total == pytest.approx(-4.0)


def test_neighbours_in_one_place_are_joined() -> None:
    rows = [op(0, "a.0", "addmm", 1e-3), op(1, "a.1", "relu", 1e-2, (0,)), op(2, "a.1", "mul", 1.0, (1,))]
    (link,) = Flow(rows, "measured").budget("module").links
    assert (link.place, link.ops) == ("a.1", ("relu", "mul"))
    assert link.log10_gain == pytest.approx(-3.0)


def test_a_gradient_of_zero_costs_everything_once() -> None:
    rows = [op(0, "a", "x", 0.0), op(1, "b", "x", 0.0, (0,)), op(2, "c", "x", 1.0, (1,))]
    budget = Flow(rows, "measured").budget("op")
    assert [link.log10_gain for link in budget] == [0.0, -math.inf]
    assert budget.total == -math.inf


def test_a_gradient_that_is_lost_and_found_again_has_the_total_of_its_ends() -> None:
    rows = [op(0, "a", "x", 0.01), op(1, "b", "x", 0.0, (0,)), op(2, "c", "x", 1.0, (1,))]
    budget = Flow(rows, "measured").budget("op")
    assert [link.log10_gain for link in budget] == [math.inf, -math.inf]
    assert budget.total == pytest.approx(-2.0)


def test_rows_by_place_are_those_behind_the_statistics() -> None:
    flow = Flow([op(0, "fc", "addmm", 1.0), op(1, "fc", "addmm", 3.0, (0,), call=1)], "measured")
    assert flow.by_place("activation_gradient") == {"fc": flow.rows}


def test_arrow_holds_all_of_it() -> None:
    flow = example()
    table = flow.to_arrow()
    assert table.num_rows == len(flow)
    again = Flow.from_arrow(table, "measured", flow.metadata, flow.notes)
    assert again.rows == flow.rows
    assert flow.to_pandas()["path"].tolist() == [row.site.path for row in flow]
    assert flow.to_polars()["mean_square"].to_list() == [
        row.stats.mean_square if row.stats else None for row in flow
    ]


def test_a_foreign_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"not a Flow table: it has no column order, call, .*found path"):
        Flow.from_arrow(pa.table({"path": ["a"]}), "measured")


def test_wrong_words_are_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"no role 'gradients'\. Roles are: activation, activation_gradient"):
        example().rms("gradients")
    with pytest.raises(ValueError, match=r"expected 'op', 'module' or 'block'"):
        example().budget("layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gains are defined for 'activation_gradient' and 'activation'"):
        example().budget(role="parameter")


def test_time_steps_stay_apart_from_whole_tensors() -> None:
    steps = [
        Row(Site("rnn", "hidden_l0", Role.ACTIVATION_GRADIENT, time=t), 0, stats=stats(10.0**-t))
        for t in (1, 0)
    ]
    flow = Flow([op(0, "rnn", "rnn_tanh", 1.0), *steps], "measured")
    assert list(flow.rms("activation_gradient")) == ["rnn"]
    profile = flow.time_profile()["rnn:hidden_l0"]
    assert {t: profile[t].rms for t in profile} == {1: pytest.approx(0.1), 0: pytest.approx(1.0)}


def test_labels() -> None:
    assert Site("a.b", "relu", Role.ACTIVATION, 2, 1).label == "a.b#2:relu[1]"
    assert Site("rnn", "hidden_l0", Role.ACTIVATION_GRADIENT, time=7).label == "rnn:hidden_l0@t7"
    assert Site("a.weight", "parameter", Role.PARAMETER).label == "a.weight"


def test_blocks_and_common_paths() -> None:
    assert block_of("transformer.h.3.attn") == "transformer.h.3"
    assert block_of("encoder.norm") == "encoder"
    assert block_of("") == ""
    assert common_path(["a.b.c", "a.b.d", "a.b"]) == "a.b"
    assert common_path(["a.b", "ab"]) == ""
    assert common_path(["", "a"]) == ""
