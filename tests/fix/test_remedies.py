"""Patches that single remedies make of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import evenflow as ef
from evenflow.fix.candidates import proposed
from evenflow.fix.remedies.balance import Balance
from evenflow.fix.remedies.logits import Logits
from evenflow.fix.remedies.skip import Skip
from evenflow.fix.remedies.slow_down import SlowDown
from evenflow.fix.remedies.standard import Standard
from evenflow.fix.remedies.standardise import Standardise
from evenflow.fix.remedies.unfreeze import Thaw
from evenflow.fix.remedy import Case, Remedy
from evenflow.fix.screen import screen
from evenflow.surgery import (
    ClipGradient,
    InitRecurrent,
    InsertNorm,
    InsertSkip,
    Patch,
    Reinitialise,
    RemoveOutputActivation,
    SetLearningRate,
    SetLoss,
    SetOptimizer,
    SetOutputActivation,
    StandardiseInput,
    StandardiseTarget,
    Unfreeze,
)
from tests.fix import programs


def _edits(remedy: Remedy, program: ef.Program) -> list[tuple[object, ...]]:
    with torch.random.fork_rng(devices=[]):
        case = Case(program, ef.Report(None, None), program.start(0))  # type: ignore[arg-type]
    return [patch.edits for patch in remedy.patches(case)]


def _chain(seed: int) -> nn.Module:
    return programs.chain(1, nn.ReLU)(seed)


def test_a_rate_far_above_the_optimizers_default_becomes_the_default() -> None:
    assert _edits(SlowDown(), programs.program(_chain, lr=1000.0))[0] == (SetLearningRate(lr=1e-3),)
    usual = _edits(SlowDown(), programs.program(_chain, lr=0.1))
    assert all(edit.lr is None for edits in usual for edit in edits if isinstance(edit, SetLearningRate))


def test_whole_targets_that_are_0_or_1_may_be_of_one_unit() -> None:
    def batches(seed: int) -> list[programs.Batch]:
        inputs, labels = programs.points()
        return [(inputs, labels % 2)]

    def losses(program: ef.Program) -> list[str]:
        return [one.to for edits in _edits(Logits(), program) for one in edits if isinstance(one, SetLoss)]

    four = programs.program(_chain)
    assert set(losses(four)) == {"cross_entropy"}
    assert set(losses(ef.Program(_chain, four.optimizer, batches, four.loss))) == {
        "cross_entropy",
        "bce_with_logits",
    }
    assert (RemoveOutputActivation(),) in _edits(Logits(), four)
    sigmoid = (SetOutputActivation("sigmoid"),)
    assert sigmoid not in _edits(Logits(), four)
    assert sigmoid in _edits(Logits(), ef.Program(_chain, four.optimizer, batches, four.loss))


def test_inputs_and_targets_are_standardised_together_before_inputs_as_a_whole() -> None:
    def batches(seed: int) -> list[programs.Batch]:
        inputs, labels = programs.points()
        return [(inputs, labels.float())]

    four = programs.program(_chain)
    made = _edits(Standardise(), ef.Program(_chain, four.optimizer, batches, four.loss))
    names = [[getattr(edit, "name", "") for edit in edits] for edits in made]
    both = ["standardise_input", "standardise_target"]
    assert names == [[both[0]], [both[1]], both, [both[0]]]


def test_inputs_are_standardised_by_more_than_a_batch_of_one() -> None:
    def singles(seed: int) -> list[programs.Batch]:
        inputs, labels = programs.points()
        return [(7 * one, label.float()) for one, label in zip(inputs.split(1), labels.split(1), strict=True)]

    four = programs.program(_chain)
    made = _edits(Standardise(), ef.Program(_chain, four.optimizer, singles, four.loss))
    whole = 7 * programs.points()[0].double()
    assert isinstance(made[-1][0], StandardiseInput)
    assert made[-1][0].std[0] == pytest.approx(float(whole.std(unbiased=False)), rel=1e-6)


def test_a_learned_skip_starts_where_the_first_layer_has_a_gradient() -> None:
    four = programs.program(programs.chain(4, nn.ReLU))
    with torch.random.fork_rng(devices=[]):
        case = Case(four, ef.Report(None, None), four.start(0))  # type: ignore[arg-type]
        training = next(iter(Skip().patches(case))).program(four).start(0)
    training.losses[""](training.model, training.first_batch()).backward()
    assert training.model[0].alpha.item() == 0.5  # 1/√4
    assert float(training.model[0].body[0].weight.grad.abs().sum()) > 0
    assert _edits(Skip(), programs.program(lambda seed: nn.Sequential(nn.Linear(32, 4))))[0] == (
        InsertSkip("plain"),
    )


def test_only_what_is_frozen_is_unfrozen() -> None:
    def frozen(seed: int) -> nn.Module:
        model = _chain(seed)
        model.requires_grad_(False)
        return model

    assert _edits(Thaw(), programs.program(frozen)) == [(Unfreeze(),)]
    assert _edits(Thaw(), programs.program(_chain)) == []


@pytest.mark.parametrize(
    ("rates", "kind", "balanced"),
    [
        ((2e-3, 1e-5), torch.optim.Adam, [2e-4, 1.4e-4, 1e-5, 2e-3]),
        ((1e-1, 1e-3), torch.optim.SGD, [1e-2, 1e-3, 1e-1]),
        ((4e-4, 1e-4), torch.optim.Adam, []),
    ],
)
def test_players_whose_rates_are_far_apart_get_one(
    rates: tuple[float, float], kind: Callable[..., torch.optim.Optimizer], balanced: list[float]
) -> None:
    plain = programs.program(_chain)
    roles = ("discriminator", "generator")
    game = replace(
        plain,
        build=lambda seed: {role: _chain(seed) for role in roles},
        optimizer=lambda models: {
            role: kind([{"params": models[role].parameters(), "lr": lr}])
            for role, lr in zip(roles, rates, strict=True)
        },
        loss=dict.fromkeys(roles, lambda models, batch: models[roles[0]](batch[0]).mean()),
    )
    assert _edits(Balance(), game) == [(SetLearningRate(lr=lr),) for lr in balanced]
    assert _edits(Balance(), plain) == []


def test_the_standard_recipe_leaves_out_what_is_there_already() -> None:
    rest = (SetOptimizer("adam", lr=1e-3), ClipGradient("norm", 1.0))
    plain = programs.program(_chain)
    assert _edits(Standard(), plain) == [
        (InsertNorm("batch"), Reinitialise("he"), *rest),
        (Reinitialise("he"), *rest),
    ]
    frozen = programs.program(lambda seed: nn.Sequential(nn.Linear(32, 32).requires_grad_(False), _chain(0)))
    assert _edits(Standard(), frozen)[-1] == (Reinitialise("he"), Unfreeze(), *rest)
    normed = programs.program(lambda seed: nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32)))
    assert _edits(Standard(), normed) == [(Reinitialise("he"), *rest)]
    recurrent = programs.program(lambda seed: nn.RNN(32, 4))
    assert _edits(Standard(), recurrent) == [(InitRecurrent("orthogonal"), *rest)]


def test_outputs_that_are_no_probabilities_become_some_or_scores_of_classes() -> None:
    found = _edits(Logits(), programs.program(_chain))
    assert (SetOutputActivation("softmax"),) in found
    assert (RemoveOutputActivation(), SetLoss("cross_entropy")) in found


def test_a_last_resort_comes_behind_all_others() -> None:
    program = programs.sigmoid()
    with torch.random.fork_rng(devices=[]):
        case = Case(program, ef.check(program, confirm=False, seconds=0.1), program.start(0))
    found, _ = proposed(case)
    assert [one.remedy for one in found if one.last] == ["standard", "standard"]
    assert [one.last for one in found] == sorted(one.last for one in found)
    assert not any(one.remedy == "standard" for one in proposed(case, {"standard"})[0])


def test_a_batch_of_one_number_is_standardised_without_a_warning() -> None:
    def batches(seed: int) -> list[programs.Batch]:
        return [(torch.full((1, 1), 3.0), torch.ones(1, 1))]

    program = replace(programs.program(lambda seed: nn.Linear(1, 1)), batches=batches)
    assert StandardiseInput((3.0,), (1.0,)) in [
        edit for edits in _edits(Standardise(), program) for edit in edits
    ]


def test_branches_that_are_shut_on_purpose_pass_the_screen() -> None:
    program = programs.sigmoid()
    with torch.random.fork_rng(devices=[]):
        case = Case(program, ef.check(program, confirm=False, seconds=0.1), program.start(0))
    assert screen(case, Patch([InsertSkip("skipinit")])) is None
    shut = screen(case, Patch([Reinitialise("he", gain=1e-3)]))
    assert shut is not None
    assert "decades through the net" in shut


def test_other_units_of_targets_pass_the_screen_though_the_gradient_at_the_loss_is_in_others_too() -> None:
    chain = programs.program(programs.chain(6, nn.Sigmoid))

    def loss(model: nn.Module, batch: programs.Batch) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.mse_loss(model(inputs)[:, 0], 1e4 * labels.float())

    program = replace(chain, loss=loss, metric=None)
    with torch.random.fork_rng(devices=[]):
        case = Case(program, ef.check(program, confirm=False, seconds=0.1), program.start(0))
    assert case.symptoms & {"vanishing_gradient", "exploding_gradient"}
    assert screen(case, Patch([StandardiseTarget((1.5e4,), (1.1e4,))])) is None
