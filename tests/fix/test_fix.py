"""fix on small programs: what is ill gets better, what is healthy is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import evenflow as ef
from evenflow.errors import EvenflowError
from evenflow.fix.course import train
from evenflow.fix.outcome import Verdict
from evenflow.fix.remedy import remedies
from evenflow.surgery import Patch
from tests.fix import programs


@pytest.fixture(scope="module")
def outcome() -> ef.Outcome:
    return ef.fix(programs.sigmoid())


def test_a_vanishing_net_learns_with_the_patch(outcome: ef.Outcome) -> None:
    program = programs.sigmoid()
    assert train(program, program.steps).metric < 0.5  # type: ignore[operator]
    best = outcome.patches[0]
    assert train(best.patch.program(program), program.steps).metric > 0.95  # type: ignore[operator]
    assert best.verdict is Verdict.CONFIRMED
    assert best.interval is not None
    assert best.interval[0] > 0


def test_the_patch_is_data_that_can_be_kept(outcome: ef.Outcome) -> None:
    patch = outcome.patches[0].patch
    assert Patch.from_json(patch.to_json()) == patch


def test_everything_tried_is_told_with_its_numbers(outcome: ef.Outcome) -> None:
    assert all(patch in outcome.trials for patch in outcome.patches)
    for trial in outcome.trials:
        seeds = 3 if trial in outcome.patches else 1  # what does not gain from the first has no others
        assert len(trial.baseline) == len(trial.patched) >= seeds
    assert outcome.refuted
    assert all(one.why.endswith(".") and one.remedy for one in outcome.refuted)


def test_trials_are_short(outcome: ef.Outcome) -> None:
    assert {trial.steps for trial in outcome.trials} == {20}


def test_a_healthy_program_is_left_alone() -> None:
    outcome = ef.fix(programs.healthy())
    assert outcome.report.healthy
    assert outcome.patches + outcome.trials == ()
    assert outcome.refuted == ()


def test_a_learning_rate_that_breaks_training_is_lowered() -> None:
    program = programs.too_fast()
    outcome = ef.fix(program)
    assert outcome.patches
    assert train(outcome.patches[0].patch.program(program), program.steps).metric > 0.9  # type: ignore[operator]


def test_the_program_and_the_random_state_are_left_alone(outcome: ef.Outcome) -> None:
    state = torch.get_rng_state()
    program = programs.sigmoid()
    before = replace(program)
    ef.fix(program, report=outcome.report, seeds=(0, 1))
    assert program == before
    assert torch.equal(torch.get_rng_state(), state)


def test_ctrl_c_keeps_what_was_found(outcome: ef.Outcome) -> None:
    def interrupt(title: str, items: object, total: int) -> object:
        if title.startswith("trials"):
            raise KeyboardInterrupt
        return items

    cut = ef.fix(programs.sigmoid(), report=outcome.report, track=interrupt)  # type: ignore[arg-type]
    assert cut.interrupted
    assert cut.refuted
    assert cut.trials == ()


def test_workers_give_the_same_outcome(outcome: ef.Outcome) -> None:
    pytest.importorskip("joblib", reason="the package joblib is not installed")
    again = ef.fix(programs.sigmoid(), report=outcome.report, workers=ef.Workers(jobs=2))
    assert [trial.patched for trial in again.trials] == [trial.patched for trial in outcome.trials]


def test_threads_are_refused() -> None:
    with pytest.raises(EvenflowError, match="share PyTorch's random numbers"):
        ef.fix(programs.sigmoid(), workers=ef.Workers(jobs=2, backend="threading"))


def test_every_remedy_says_where_it_comes_from() -> None:
    found = remedies()
    assert len({remedy.name for remedy in found}) == len(found) >= 15
    for remedy in found:
        assert remedy.reference
        assert remedy.causes or remedy.symptoms or remedy.last
        weights = [*remedy.causes.values(), *remedy.symptoms.values()]
        assert all(0 < weight <= 1 for weight in weights)


def test_remedies_for_every_kind_of_model_fit_or_say_why() -> None:
    """Each patch of each remedy on a recurrent model: applied, or refused with a reason."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(4, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.rnn(x.view(len(x), 8, 4))[0][:, -1])
            return y

    from evenflow.fix.remedy import Case
    from evenflow.fix.screen import screen

    program = programs.program(lambda seed: Reader())
    with torch.random.fork_rng(devices=[]):
        case = Case(program, ef.check(program, seconds=0.5), program.start(0))
    for remedy in remedies():
        for patch in remedy.patches(case):
            why = screen(case, patch)
            assert why is None or "raised" not in why, (patch.describe(), why)
