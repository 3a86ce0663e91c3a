"""Long recurrences: which cures go first, and which are refuted by the gradient along time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.diagnose import CauseName, Diagnosis, diagnose
from evenflow.fix.candidates import proposed
from evenflow.fix.remedies.clip import Clip
from evenflow.fix.remedies.remember import LONG, Remember
from evenflow.fix.remedy import Case
from evenflow.fix.screen import screen
from evenflow.measure.first import first_flows
from evenflow.surgery import (
    ClipGradient,
    InitRecurrent,
    Patch,
    Reinitialise,
    ReplaceCell,
    SetLearningRate,
    SetLoss,
)
from tests.fix import programs

STEPS = 120
CHRONO = Patch([ReplaceCell("lstm"), InitRecurrent("chrono", longest=STEPS)])


class _Reader(nn.Module):
    """Reads a sequence and answers at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


def _case(steps: int = STEPS, patch: Patch | None = None) -> Case:
    source = torch.Generator().manual_seed(0)
    batch = torch.randn(8, steps, 2, generator=source), torch.randn(8, 1, generator=source)
    program = replace(
        programs.program(lambda seed: _Reader(), steps=1),
        batches=lambda seed: [batch],
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        metric=None,
    )
    if patch is not None:
        program = patch.program(program)
    flows = first_flows(program)
    return Case(program, ef.Report(flows[""], diagnose(flows[""]), flows=flows), program.start(0))


@pytest.fixture(scope="module")
def forgetful() -> Case:
    return _case()


def test_where_early_steps_are_not_felt_the_known_cures_go_first(forgetful: Case) -> None:
    first = [one for one in proposed(forgetful)[0] if one.first]
    assert [one.remedy for one in first] == ["remember", "remember"]
    assert [[edit.name for edit in one.patch.edits] for one in first] == [
        ["init_recurrent", "clip_gradient"],
        ["replace_cell"],
    ]
    assert first[0].reason == "long recurrence"
    assert [screen(forgetful, one.patch) for one in first] == [None, None]


def test_a_recurrence_that_amplifies_starts_orthogonal_before_anything_else_is_made_of_it() -> None:
    case = _case(steps=8)
    vars(case)["causes"] = {CauseName.RECURRENT_GAIN_TOO_LARGE: 0.9}
    patches = list(Remember().patches(case))
    assert patches[0].edits == (InitRecurrent("orthogonal"), ClipGradient("norm", 1.0))
    assert Remember().promise(case) == Clip().promise(case)
    vars(case)["causes"] = {CauseName.LONG_RECURRENCE: 0.9}
    assert next(Remember().patches(case)).edits[0] == InitRecurrent("identity")


@pytest.mark.parametrize(
    ("steps", "patch"),
    [
        pytest.param(10, None, id="a short sequence"),
        pytest.param(STEPS, CHRONO, id="an LSTM"),
    ],
)
def test_elsewhere_they_wait_their_turn(steps: int, patch: Patch | None) -> None:
    assert Remember().first(_case(steps, patch)) == 0


def test_where_a_loss_at_every_step_hides_it_they_go_first_too(forgetful: Case) -> None:
    """The user insists that the training fails; nothing was found."""
    unfound = replace(forgetful, report=replace(forgetful.report, diagnosis=Diagnosis((), ())))
    first = [one for one in proposed(unfound)[0] if one.first]
    assert [one.remedy for one in first] == ["remember", "remember"]
    assert first[0].reason == "long recurrence"


def test_a_plain_net_feels_less_than_half_of_so_many_steps() -> None:
    """The rule speaks above and is silent below."""
    assert [len(_case(round(share * LONG)).findings) for share in (0.75, 1.33)] == [0, 1]


def test_what_leaves_the_early_steps_unfelt_is_refuted_on_one_batch(forgetful: Case) -> None:
    why = screen(forgetful, Patch([Reinitialise("he", where="head")]))
    assert why is not None
    assert why.startswith("On one batch the loss feels 2")
    assert why.endswith("without the patch.")


def test_what_moves_only_the_optimizer_is_left_to_a_trial(forgetful: Case) -> None:
    assert screen(forgetful, Patch([SetLearningRate(factor=0.1)])) is None


def test_a_baseline_of_gradients_that_are_no_numbers_is_screened_all_the_same() -> None:
    broken = replace(_case(10).program, loss=lambda model, batch: model(batch[0]).mean() * float("nan"))
    flows = first_flows(broken)
    case = Case(broken, ef.Report(flows[""], diagnose(flows[""]), flows=flows), broken.start(0))
    mended = screen(case, Patch([Reinitialise("he", where="head"), SetLoss("mse")]))
    assert mended is None
