"""Two processes that train on halves, under every sharding, show what one shows that trains on the whole."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.nn import functional as F

from evenflow.flow import Flow, Run
from evenflow.store import open_run
from evenflow.watch.recorder import Direction, read_flights
from tests.watch.ranks.programs import CASES, ON_FOUR, OTHERS, SAME, Case, batch, ddp, train
from tests.watch.ranks.worker import BEHAVIOURS

TOLERANCE = 1e-6
ROOT = Path(__file__).parents[3]


class Ranks:
    """What several processes left behind."""

    def __init__(self, folder: Path, size: int, names: list[str]) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.watch.ranks.worker", str(folder), str(rank), str(size), *names],
                env=environment,
                cwd=folder,
            )
            for rank in range(size)
        ]
        try:
            codes = [rank.wait(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        assert codes == [0] * size
        self.said = [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(size)]

    def run(self, name: str) -> Run:
        for said in self.said:
            assert said[name]["trouble"] is None
            assert [text for text in said[name]["told"] if text.startswith("WatchWarning")] == []
        return open_run(self.folder / name)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("two"), 2, [*SAME, *OTHERS, *BEHAVIOURS])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("four"), 4, [*ON_FOUR])


def alone(name: str) -> Run:
    watch, _ = train(CASES[name])
    assert watch is not None
    assert watch.trouble is None
    return watch.run


def differences(flow: Flow, expected: Flow) -> list[str]:
    """Where two Flows differ by more than the tolerance, in words."""
    found = []
    rows = {(row.site.path, row.site.call, row.site.role): row for row in flow}
    wanted = {(row.site.path, row.site.call, row.site.role): row for row in expected}
    if list(rows) != list(wanted):
        found.append(f"rows {rows.keys() ^ wanted.keys()}")
    for key in rows.keys() & wanted.keys():
        row, other = rows[key], wanted[key]
        if (row.status, row.module_type, row.inputs, row.order) != (
            other.status, other.module_type, other.inputs, other.order
        ):  # fmt: skip
            found.append(f"{key}: {row} != {other}")
        if row.stats is None or other.stats is None:
            found += [f"{key}: {row.stats} {other.stats}"] if row.stats is not other.stats else []
            continue
        a, b = row.stats, other.stats
        if (a.count, a.nonfinite_count) != (b.count, b.nonfinite_count):
            found.append(f"{key}: count {a.count} {b.count}")
        for name in ("mean", "mean_square", "abs_max"):
            x, y = getattr(a, name), getattr(b, name)
            scale = b.rms if name == "mean" else abs(y)
            if abs(x - y) > TOLERANCE * scale:
                found.append(f"{key}: {name} {x} {y}")
        if row.site.op == "parameter" and row.shape != other.shape:
            found.append(f"{key}: shape {row.shape} {other.shape}")
        x, y = row.saturated_fraction, other.saturated_fraction
        if (x is None) is not (y is None) or abs((x or 0.0) - (y or 0.0)) > TOLERANCE * (y or 0.0):
            found.append(f"{key}: saturated {x} {y}")
    return found


def values(run: Run) -> dict[str, dict[int, float]]:
    """Figure → step → value, of the whole model and of single parameters."""
    found = dict(run.scalars)
    for figure in ("gradient_norm_after_clipping", "second_moment_mean"):
        found |= {f"{figure} of {path}": series for path, series in run.parameter(figure).items()}
    return {name: dict(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for name, s in found.items()}


def compare(run: Run, expected: Run) -> None:
    assert run.steps == expected.steps
    for step, flow in expected.flows():
        assert differences(run.flow(step), flow) == []
    found = values(run)
    for name, of_steps in values(expected).items():
        assert found[name] == pytest.approx(of_steps, rel=TOLERANCE), name


@pytest.mark.parametrize("name", SAME)
def test_the_same_figures_under_every_sharding(name: str, two: Ranks) -> None:
    compare(two.run(name), alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FOUR)
def test_the_same_figures_on_meshes_of_two_axes(name: str, four: Ranks) -> None:
    compare(four.run(name), alone(name))


def test_the_comparison_can_fail(two: Ranks) -> None:
    flow, other = (alone(name).flow(1) for name in ("ddp", "ddp_accumulated"))
    assert differences(flow, flow) == []
    assert any("mean_square" in text for text in differences(flow, other))
    assert any("rows" in text for text in differences(flow, alone("tensor_parallel").flow(1)))


def test_only_rank_0_writes(two: Ranks) -> None:
    assert [said["ddp"]["flows_here"] for said in two.said] == [3, 0]
    assert two.run("ddp").metadata["ranks"] == 2


@pytest.mark.parametrize("name", ["bad_rank_ddp", "bad_rank_fsdp"])
def test_the_rank_that_had_the_bad_gradient_is_named(name: str, two: Ranks) -> None:
    run = two.run(name)
    large, broken = (event for event in run.events if event.kind == "rank_outlier")
    assert large.step == 1
    assert re.fullmatch(
        r"Rank 0 had a gradient of norm \d+ in micro-batch 0, before the reduction; the root mean square of "
        r"the others is [\d.]+\. It is largest at 5\.weight\.",
        large.text,
    )
    assert broken.step == 2
    assert broken.text == (
        "Rank 1 had a gradient that is not finite in micro-batch 1, before the reduction; "
        "it came first at 5.bias."
    )
    norms = [run.scalars[f"gradient_norm_of_rank/{rank}"].values for rank in (0, 1)]
    assert norms[0][1] > 30 * norms[1][1]
    assert [math.isnan(of_rank[2]) for of_rank in norms] == [False, True]
    assert run.flow(2).stats("parameter_gradient")["0.weight"].nonfinite_count == 35, (
        "after it, everybody has"
    )


def test_healthy_ranks_are_not_named(two: Ranks) -> None:
    for name in SAME:
        assert "rank_outlier" not in {event.kind for event in two.run(name).events}


def test_the_norm_of_a_rank_is_that_before_the_reduction(two: Ranks) -> None:
    case = CASES["ddp"]
    (inputs, target), found = batch(0, case.model), two.run("ddp").scalars
    for rank in (0, 1):
        model = case.model()
        F.cross_entropy(model(inputs.chunk(2)[rank]), target.chunk(2)[rank]).backward()
        own = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
        assert found[f"gradient_norm_of_rank/{rank}"].at(0) == pytest.approx(own, rel=TOLERANCE)


def test_ranks_take_the_samples_that_all_can_afford(two: Ranks) -> None:
    run = two.run("agreement")
    assert run.steps == (0, 11, 22, 33), "the longest wait, counted from two steps after a sample"
    assert [said["agreement"]["sampled"] for said in two.said] == [4, 4]
    watch, _ = train(Case(ddp, steps=40))
    assert watch is not None
    wanted, found = values(watch.run), values(run)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=TOLERANCE)
    norms = found["gradient_norm_after_clipping"]
    assert len(norms) > 30, "also of steps between samples"
    assert norms == pytest.approx(
        {step: wanted["gradient_norm_after_clipping"][step] for step in norms}, rel=TOLERANCE
    )


def test_weights_are_bitwise_the_same(two: Ranks) -> None:
    for said in two.said:
        assert said["bitwise"]["same"] == [True] * 16
        assert said["bitwise"]["told"] == []


def test_a_failure_on_one_rank_is_one_warning_on_each_and_training_goes_on(two: Ranks) -> None:
    first, second = (said["one_breaks"] for said in two.said)
    assert second["trouble"] == "RuntimeError: broken for a test"
    assert first["trouble"].startswith("ExchangeError: another rank does not answer (")
    for said in (first, second):
        assert said["same"] == [True] * 8
        (told,) = said["told"]
        assert told.startswith("WatchWarning: evenflow stopped watching at step ")


def test_one_rank_that_watches_alone_is_told(two: Ranks) -> None:
    first, second = (said["only_one_watches"] for said in two.said)
    (told,) = first["told"]
    assert told.startswith(
        "WatchWarning: evenflow sees rank 0 alone: the other ranks did not come within 1 s"
    )
    assert told.endswith(
        "Call evenflow.watch on every rank, also on those that write nothing, to see the training as a whole."
    )
    assert (first["trouble"], first["flows_here"], second["told"]) == (None, 3, [])


def test_a_rank_that_never_samples_does_not_keep_the_others(two: Ranks) -> None:
    first, second = (said["one_never_steps"] for said in two.said)
    assert first["trouble"] == "ExchangeError: no answer from the other ranks within 1 s"
    assert (len(first["told"]), len(second["told"])) == (1, 1)
    assert max(first["seconds"], second["seconds"]) < 10


def test_an_exception_on_one_rank_loses_nothing_that_was_met_about(two: Ranks) -> None:
    run = open_run(two.folder / "one_raises")
    assert set(run.steps) >= {0, 1, 2}
    assert run.scalars["loss"].values.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert two.said[1]["one_raises"]["told"] == []
    assert len(two.said[0]["one_raises"]["told"]) == 1


def test_each_rank_writes_a_flight_and_only_the_one_with_the_bad_batch_blames_itself(two: Ranks) -> None:
    innocent, guilty = read_flights(two.folder / "bad_batch")
    assert (innocent.rank, innocent.step, innocent.culprit) == (0, 2, None)
    assert "came from another" in innocent.message
    assert guilty.culprit is not None
    assert (guilty.rank, guilty.step, guilty.culprit.direction) == (1, 2, Direction.BATCH)
    assert guilty.folder is not None
    assert guilty.folder.endswith("step-00000002-rank1")
    assert "rank 1" in guilty.message
    for flight in (innocent, guilty):
        assert flight.bad_parameters == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert flight.folder is not None
        before = open_run(flight.folder).scalars["gradient_norm_before_clipping"]
        assert before.steps.tolist() == [0, 1], "the steps before are with it"
    assert [len(said["bad_batch"]["flights"]) for said in two.said] == [1, 1]
    two.run("bad_batch")
