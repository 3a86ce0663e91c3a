"""The budget: kept on simulated clocks, reported truthfully, and memory that does not grow with the run."""

from __future__ import annotations

import gc
import random
import tracemalloc
from dataclasses import replace

import pytest
import torch

from evenflow.watch import Allowance, Cost, watch
from evenflow.watch.governor import Governor
from tests.watch.programs import mlp


def simulate(
    governor: Governor, step: float, sample: float, figures: float, steps: int, jitter: float = 0.0
) -> Cost:
    """Training steps of a known length, with samples and figures of known cost."""
    chance = random.Random(0)
    began = False
    for _ in range(steps):
        own = 0.0
        if governor.sampling:
            own += sample
        if governor.figures:
            own += figures
            governor.spend_on_figures(figures)
        if own:
            governor.spend(own)
        bare = step * (1 + jitter * (chance.random() - 0.5))
        governor.step(bare + own if began else None)
        began = True
    return governor.cost


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("sample", [0.001, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_the_budget_is_kept(budget: float, sample: float, jitter: float) -> None:
    step = 0.05
    cost = simulate(Governor(budget), step, sample * step, 1e-4 * step, 20_000, jitter)
    allowance = 3.0 * (sample + 1e-4) * step  # the first sample is on credit, one may be under way
    assert cost.seconds <= budget * cost.training_seconds + allowance
    assert cost.steps == 20_000
    assert cost.sampled >= 1


def test_the_budget_is_used() -> None:
    cost = simulate(Governor(0.01), 0.05, 0.005, 1e-6, 20_000)
    assert 0.008 < cost.fraction < 0.0101
    assert cost.sampled == pytest.approx(20_000 * 0.01 / 0.1, rel=0.1), "one step in c / budget"
    assert cost.figures == 20_000, "the whole-model figures are taken at every step"


def test_a_budget_that_pays_for_everything_samples_every_step() -> None:
    cost = simulate(Governor(0.5), 0.05, 0.005, 1e-6, 1000)
    assert cost.sampled >= 990


def test_figures_are_thinned_where_even_they_cost_too_much() -> None:
    cost = simulate(Governor(0.01), 1e-3, 2e-3, 1e-4, 50_000)
    assert cost.fraction < 0.012
    assert 0 < cost.figures < 50_000


def test_one_slow_moment_does_not_end_the_figures() -> None:
    governor = Governor(0.01)
    simulate(governor, 0.05, 0.005, 1e-6, 100)
    governor.spend(10.0)
    governor.spend_on_figures(10.0)
    governor.step(10.05)
    before = governor.cost.figures
    simulate(governor, 0.05, 0.005, 1e-6, 2000)
    assert governor.cost.figures - before > 1000


def test_what_others_spend_at_every_step_does_not_end_the_figures() -> None:
    governor = Governor(0.01)
    for _ in range(1000):
        governor.spend(0.01)
        governor.spend_on_figures(1e-4)
        governor.step(0.06)
    assert governor.cost.figures == 1000
    assert governor.cost.sampled == 1


def test_what_the_writing_thread_spends_is_paid_for_by_sampling_less() -> None:
    governor = Governor(0.01)
    governor.spend_apart(0.1)
    cost = simulate(governor, 0.05, 0.005, 1e-6, 150)
    assert (cost.sampled, cost.figures) == (1, 150), "0.075 s of budget, 0.1 s owed"


def test_no_budget_takes_everything() -> None:
    cost = simulate(Governor(None), 0.05, 1.0, 0.1, 100)
    assert (cost.sampled, cost.figures) == (100, 100)


def test_a_pause_is_not_followed_by_a_burst() -> None:
    governor = Governor(0.01)
    simulate(governor, 0.05, 0.005, 0.0, 1000)
    governor.step(3600.0)
    before = governor.cost.sampled
    simulate(governor, 0.05, 0.005, 0.0, 20)
    assert governor.cost.sampled - before <= 3


def test_what_was_skipped_is_reported() -> None:
    program = mlp()
    with watch(program.models, program.optimizers, budget=0.01) as run:
        for _ in range(30):
            program.step()
    (event,) = (event for event in run.run.events if event.kind == "cost")
    assert event.text == str(run.cost)
    assert event.text.startswith(
        f"{run.cost.sampled} of 30 steps were sampled and the figures of the whole model"
    )
    assert "of the training time (budget 1.00%)." in event.text
    assert run.cost.sampled == len(run.run.steps)


def test_the_cost_is_put_in_words() -> None:
    cost = Cost(steps=100, sampled=3, figures=90, seconds=0.1, training_seconds=10.1, budget=None)
    assert str(cost) == (
        "3 of 100 steps were sampled and the figures of the whole model taken at 90; "
        "that took 1.00% of the training time (no limit)."
    )
    assert str(replace(cost, startup_seconds=0.73)).endswith("(no limit). Starting took 0.7 s.")


def grown(steps: int) -> int:
    """Bytes that so many more steps leave behind, once it runs."""
    parameter = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.ParameterList([parameter])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parameter.grad = torch.ones(2)
    with watch(model, optimizer, budget=0.5) as run:
        for _ in range(200):
            optimizer.step()
        run._writer.flush()
        tracemalloc.start()
        for _ in range(steps):
            optimizer.step()
            run.log(loss=1.0)
        run._writer.flush()
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert run._timeline.waiting == 0
        stored = sum(len(run._writer.storage.read(name)) for name in run._writer.storage.names())
    assert run.trouble is None
    return left - stored


def test_memory_stays_flat() -> None:
    few, many = grown(500), grown(2500)
    assert many < few + 100_000, "bytes beyond the stored run"


@pytest.mark.slow
def test_memory_stays_flat_over_a_million_steps(tmp_path: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 1e-3)
    parameter.grad = torch.ones(2)
    with watch(torch.nn.ParameterList([parameter]), optimizer, path=f"{tmp_path}/run") as run:
        levels = []
        for _ in range(4):
            for _ in range(250_000):
                optimizer.step()
            run._writer.flush()
            levels.append(_resident())
    assert max(levels[1:]) - levels[1] < 50, f"MiB after each quarter: {levels}"


def _resident() -> float:
    """Memory of this process in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def test_an_allowance_in_seconds_is_spent_half_at_once_and_half_over_the_steps() -> None:
    governor = Governor(Allowance(seconds=1.0, steps=100))
    sampled = []
    for step in range(100):
        if governor.sampling:
            sampled.append(step)
            governor.spend(0.05)
        governor.step(0.01)
    assert sampled[:10] == list(range(10))  # half a second buys ten looks, whatever a step takes
    assert 19 <= len(sampled) <= 21
    assert max(sampled) >= 90
    assert str(governor.cost).endswith("(budget 1 s over 100 steps).")


def test_an_allowance_that_is_enough_sees_every_step() -> None:
    governor = Governor(Allowance(seconds=10.0, steps=100))
    for _ in range(100):
        assert governor.sampling
        governor.spend(0.05)
        governor.step(0.001)
