"""The flight recorder: who broke first, what is kept of it, and that training does not notice."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import diagnose
from evenflow.store import open_run
from evenflow.watch import Watch, watch
from evenflow.watch.finite import bad
from evenflow.watch.recorder import Direction, Trouble, Witness, read_flights
from evenflow.watch.recorder.ring import LENGTH, NormRing, Ring
from tests.watch.programs import ALL, Program, mlp
from tests.watch.trials import draw, sites, strike

# --- faults at random ops -------------------------------------------------------


@pytest.mark.parametrize(("lasting", "sentinels"), [(False, True), (True, False)])
@pytest.mark.parametrize("name", ALL)
def test_the_module_that_broke_first_is_named(name: str, lasting: bool, sentinels: bool) -> None:
    rng, known, effective = random.Random(3), sites(ALL[name]), 0
    while effective < 4:
        site, value = draw(rng, known), rng.choice([math.nan, math.inf])
        trial = strike(ALL[name], site, value, step=rng.randrange(1, 4), lasting=lasting, sentinels=sentinels)
        if trial.flight is None:
            continue  # nothing came of it
        effective += 1
        assert trial.right, f"{site}: {trial.flight.message}"
        culprit = trial.flight.culprit
        assert culprit is not None
        assert culprit.witness is (Witness.IN_SITU if sentinels else Witness.REPLAY)


def test_a_fault_that_nobody_saw_and_that_does_not_come_again_is_not_made_up() -> None:
    site = next(one for one in sites(mlp) if one.module == "2" and not one.backward)
    trial = strike(mlp, site, math.nan, step=2, lasting=False, sentinels=False)
    assert trial.flight is not None
    assert trial.flight.culprit is not None
    assert trial.flight.culprit.witness is Witness.GRADIENTS
    assert any("does not come by itself a second time" in note for note in trial.flight.notes)


# --- real faults ------------------------------------------------------------------


class Log(nn.Module):
    """Its logarithm leaves its domain once ``x`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.log(self.first(x) + 2.0))


def log_net() -> tuple[Log, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Log()
    return model, torch.optim.SGD(model.parameters(), 1e-3)


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return 1 + next(number for number, line in enumerate(lines) if text in line)


def train(
    run: Watch, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]
) -> list[Tensor]:
    losses = []
    for batch in batches:
        time.sleep(1e-3)  # a step has to cost something for a budget to leave room for anything
        loss = model(batch).square().mean()
        loss.backward()
        run.log(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("budget", [None, 0.9])
def test_the_op_and_the_line_are_named_and_kept(budget: float | None, tmp_path: Path) -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=budget, path=tmp_path / "run") as run:
        train(run, model, optimizer, [torch.ones(3, 4)] * 3 + [torch.full((3, 4), -50.0)] * 2)
    (flight,) = read_flights(tmp_path / "run")
    assert flight == run.flights[0]
    culprit = flight.culprit
    assert culprit is not None
    assert (flight.step, flight.rank, culprit.direction) == (3, 0, Direction.FORWARD)
    assert (culprit.module, culprit.op) == ("", "log")
    assert culprit.source == f"tests/watch/test_recorder.py:{line_of('torch.log(self.first(x)')}"
    assert flight.message == (
        "Step 3: the loss is nan; the first NaN or infinity was made forward by log in the model itself "
        f"({culprit.source}) (micro-batch 0, rank 0)."
    )
    assert [event.text for event in run.run.events if event.kind == "flight"] == [flight.message]
    kept = open_run(str(flight.folder))
    assert kept.flow(3).select("activation")  # op by op
    assert {"non_finite"} == {f.symptom for f in diagnose(kept.flow(3)).findings if f.severity == "error"}
    assert kept.parameter("gradient_norm")["first.weight"].steps[-1] == 3
    assert list(kept.scalars["loss"].steps) == [0, 1, 2]
    assert json.loads((Path(str(flight.folder)) / "flight.json").read_text())["culprit"]["op"] == "log"


def test_a_loss_that_is_not_finite_is_the_losss_fault() -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=None) as run:
        for factor in (1.0, 1.0, math.nan):
            (model(torch.ones(3, 4)).mean() * factor).backward()
            optimizer.step()
    culprit = run.flights[0].culprit
    assert culprit is not None
    assert (culprit.direction, culprit.module) == (Direction.LOSS, "<loss>")


def test_a_bad_batch_is_called_bad() -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=None) as run:
        train(run, model, optimizer, [torch.ones(3, 4), torch.full((3, 4), math.nan)])
    culprit = run.flights[0].culprit
    assert culprit is not None
    assert culprit.direction is Direction.BATCH


def test_the_micro_batch_is_named() -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=None) as run:
        for value in (1.0, 1.0, -50.0):
            model(torch.full((3, 4), value)).mean().backward()
        optimizer.step()
    culprit = run.flights[0].culprit
    assert culprit is not None
    assert culprit.micro_batch == 2


def test_minus_infinity_in_a_mask_is_meant() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 1, batch_first=True), Log()

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(3)
            return self.head(self.attention(x, x, x, attn_mask=mask)[0])

    torch.manual_seed(0)
    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with watch(model, optimizer, budget=None) as run:
        train(run, model, optimizer, [torch.ones(2, 3, 4)] * 2 + [torch.full((2, 3, 4), -900.0)])
    culprit = run.flights[0].culprit
    assert culprit is not None
    assert (culprit.module, culprit.op) == ("head", "log")


def test_an_exception_names_the_module_that_ran(tmp_path: Path) -> None:
    model, optimizer = log_net()

    def fail() -> None:
        with watch(model, optimizer, path=tmp_path / "run") as run:
            train(run, model, optimizer, [torch.ones(3, 4), torch.ones(3, 9)])

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fail()
    (flight,) = read_flights(tmp_path / "run")
    assert flight.trouble is Trouble.EXCEPTION
    assert flight.culprit is not None
    assert (flight.step, flight.culprit.module, flight.culprit.witness) == (1, "first", Witness.TRACEBACK)


def test_a_closure_is_judged_before_anybody_moves_on() -> None:
    model, optimizer = log_net()
    values = iter([1.0, 1.0, -50.0])

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.full((3, 4), next(values))).mean()
        loss.backward()
        return float(loss.detach())

    with watch(model, optimizer, budget=None) as run:
        for _ in range(3):
            optimizer.step(closure)
    assert run.trouble is None
    culprit = run.flights[0].culprit
    assert culprit is not None
    assert (run.flights[0].step, culprit.op) == (2, "log")


def test_steps_that_a_scaler_skips_are_no_accident() -> None:
    model, optimizer = log_net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watch(model, optimizer, scaler=scaler, budget=None) as run:
        for _ in range(3):
            scaler.scale((1e3 * model(torch.ones(3, 4))).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert "skipped" in run.run.scalars
    assert run.flights == ()


# --- spikes and the ring ----------------------------------------------------------


def test_a_spike_is_what_exceeds_the_whole_spread_of_a_full_ring() -> None:
    ring, draws = Ring(), random.Random(0)
    assert not any(ring.spikes("loss", 3.0 + 0.1 * draws.gauss(0.0, 1.0)) for _ in range(10 * LENGTH))
    assert ring.spikes("loss", 4.5)
    for norm, expected in ((9e3, False), (1.1e4, True)):  # two decades of spread above the largest, 100
        other = Ring()
        assert not any(other.spikes("norm", 10.0 ** (n % 3), logarithmic=True) for n in range(LENGTH))
        assert other.spikes("norm", norm, logarithmic=True) is expected
    assert not Ring().spikes("loss", 1e9), "a ring that is not full judges nothing"


def test_a_spike_of_the_loss_is_kept_with_its_batch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    with watch(model, optimizer, budget=None) as run:
        train(run, model, optimizer, [torch.ones(3, 4)] * (LENGTH + 1) + [torch.full((3, 4), 9.0)])
    assert [(f.trouble, f.step) for f in run.flights] == [(Trouble.LOSS_SPIKE, LENGTH + 1)]


def test_the_ring_is_bounded_and_keeps_the_last_norms() -> None:
    ring = NormRing()
    for step in range(3 * LENGTH):
        ring.put(step, ("a", "b"), torch.tensor([float(step), -float(step)]))
    rows = ring.rows()
    assert [step for step, _ in rows] == list(range(2 * LENGTH, 3 * LENGTH))
    assert rows[-1] == (3 * LENGTH - 1, [3 * LENGTH - 1.0, 1.0 - 3 * LENGTH])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], False),
        ([math.nan], True),
        ([math.inf, -math.inf], True),
        ([3e38, 3e38], False),
        ([], False),
    ],
)
def test_a_sum_says_whether_a_tensor_is_finite(values: list[float], expected: bool) -> None:
    assert bad(torch.tensor(values)) is expected
    assert bad(torch.tensor(values, dtype=torch.bfloat16)) is expected
    assert bad(torch.tensor(values, dtype=torch.complex64)) is expected


# --- do no harm -------------------------------------------------------------------


def states(program: Program) -> list[Tensor]:
    return [*program.state(), torch.get_rng_state()]


@pytest.mark.parametrize("name", ALL)
def test_a_replay_leaves_no_trace(name: str) -> None:
    """Every step is called bad, so every step is run again; training computes the same bits."""

    def run(watched: bool) -> list[Tensor]:
        program = ALL[name]()
        torch.manual_seed(1)
        if not watched:
            for _ in range(4):
                program.step()
            return states(program)
        with watch(program.models, program.optimizers, budget=None) as run:
            assert run._flight is not None
            ring: Any = run._flight.ring
            ring.spikes = lambda *args, **kwargs: True
            for _ in range(4):
                program.step()
        assert run.trouble is None
        assert len(run.flights) >= 4
        assert not any("could not" in note for flight in run.flights for note in flight.notes)
        return states(program)

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_what_cannot_be_written_is_kept_in_memory_and_training_goes_on(tmp_path: Path) -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=None, path=tmp_path / "run") as run:
        (tmp_path / "run" / "flight").write_text("in the way")
        train(run, model, optimizer, [torch.full((3, 4), -50.0)] * 2)
    assert run.trouble is None
    assert run.flights[0].folder is None
    assert "could not be written" in run.flights[0].notes[-1]


def test_a_damaged_flight_is_told_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "flight" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "flight.json").write_text("{")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert read_flights(tmp_path) == ()


def test_it_can_be_left_out() -> None:
    model, optimizer = log_net()
    with watch(model, optimizer, budget=None, flight_recorder=False) as run:
        losses = train(run, model, optimizer, [torch.full((3, 4), -50.0)] * 2)
    assert not torch.isfinite(F.relu(losses[0]))
    assert run.flights == ()
