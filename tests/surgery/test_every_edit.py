"""What holds for every edit: its code does what it does, it comes off to the bit, it is JSON, it says no."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program
from evenflow.surgery import EDITS, Edit, Patch, PatchError
from tests.surgery.cases import ALL, GAN_CASES, MODEL_CASES, TRAINING_CASES, X, gan, softmaxed
from tests.surgery.nets import built, chain, differences, executed

named = pytest.mark.parametrize("name", list(MODEL_CASES))


def _called(model: Any, inputs: Any) -> Tensor:
    torch.manual_seed(11)
    output: Tensor = model(inputs.clone())
    return output


def test_every_edit_has_a_case() -> None:
    assert {type(edit) for edit in ALL} == set(EDITS.values())


def test_every_edit_of_a_model_has_a_model_that_it_does_not_fit() -> None:
    on_models = {kind for kind in EDITS.values() if kind.model_steps is not Edit.model_steps}
    assert {type(case.edit) for case in MODEL_CASES.values() if case.misfit} == on_models


@named
def test_printed_code_gives_the_same_model(name: str) -> None:
    case = MODEL_CASES[name]
    model, patch = built(case.model), Patch(case.edit, seed=5)
    edited, code = patch.apply(model, case.inputs), patch.code(model, case.inputs)
    assert "evenflow" not in code
    edit_model = executed(code).edit_model
    printed = edit_model(copy.deepcopy(model), *([case.inputs] if case.edit.measures else []))
    assert differences(edited, printed) == []
    assert torch.equal(_called(edited, case.inputs), _called(printed, case.inputs))
    assert differences(model, edited) or not torch.equal(
        _called(model, case.inputs), _called(edited, case.inputs)
    )


@named
def test_code_without_a_model_builds_the_patch(name: str) -> None:
    case = MODEL_CASES[name]
    model, patch = built(case.model), Patch(case.edit)
    printed = executed(patch.code()).edit_model(model, case.inputs)
    assert differences(patch.apply(model, case.inputs), printed) == []


@named
def test_the_original_is_left_as_it_was_and_undo_gives_it_back(name: str) -> None:
    case = MODEL_CASES[name]
    model, patch = built(case.model), Patch(case.edit)
    untouched, state = copy.deepcopy(model), torch.get_rng_state()
    edited = patch.apply(model, case.inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert differences(model, untouched) == []
    plain = patch.undo(edited)
    assert differences(plain, untouched) == []
    assert {key: type(value) for key, value in vars(plain).items()} == {
        key: type(v) for key, v in vars(model).items()
    }
    assert torch.equal(_called(plain, case.inputs), _called(untouched, case.inputs))
    assert differences(patch.apply(plain, case.inputs), edited) == []


@named
def test_in_place_and_back(name: str) -> None:
    case = MODEL_CASES[name]
    model, patch = built(case.model), Patch(case.edit)
    untouched, expected = copy.deepcopy(model), patch.apply(model, case.inputs)
    assert patch.apply(model, case.inputs, in_place=True) is model
    assert differences(model, expected) == []
    assert patch.undo(model, in_place=True) is model
    assert differences(model, untouched) == []


@named
def test_an_edited_model_can_be_copied_saved_and_trained(name: str) -> None:
    case = MODEL_CASES[name]
    edited = Patch(case.edit).apply(built(case.model), case.inputs)
    expected = _called(copy.deepcopy(edited), case.inputs)
    assert torch.equal(_called(copy.deepcopy(edited), case.inputs), expected)
    if "spectral" not in name:  # PyTorch's parametrisations refuse to be pickled
        assert torch.equal(_called(pickle.loads(pickle.dumps(edited)), case.inputs), expected)
    other = Patch(case.edit).apply(built(case.model), case.inputs)
    other.load_state_dict(edited.state_dict())
    optimizer = torch.optim.SGD(edited.parameters(), 0.01)
    _called(edited, case.inputs).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in edited.parameters())


@pytest.mark.parametrize("name", [name for name, case in MODEL_CASES.items() if case.misfit])
def test_a_misfit_says_why_and_changes_nothing(name: str) -> None:
    case = MODEL_CASES[name]
    model = built(case.misfit)
    untouched = copy.deepcopy(model)
    patch = Patch([case.edit])
    for act in (
        lambda: patch.apply(model, case.inputs),
        lambda: patch.apply(model, case.inputs, in_place=True),
        lambda: patch.code(model, case.inputs),
    ):
        with pytest.raises(PatchError) as caught:
            act()
        assert case.said in str(caught.value)
        assert case.edit.name in str(caught.value)
        assert differences(model, untouched) == []


def test_an_edit_that_fails_late_leaves_a_model_in_place_as_it_was() -> None:
    model = built(chain)
    untouched = copy.deepcopy(model)
    patch = Patch([MODEL_CASES["he"].edit, MODEL_CASES["batch norm"].edit, MODEL_CASES["lstm"].edit])
    with pytest.raises(PatchError, match="replace_cell does not fit this model"):
        patch.apply(model, in_place=True)
    assert differences(model, untouched) == []


@pytest.mark.parametrize("edit", ALL, ids=lambda edit: edit.name)
def test_json_and_back(edit: Edit) -> None:
    patch = Patch([edit], seed=7)
    text = patch.to_json()
    assert Patch.from_json(text) == patch
    assert Patch.from_json(text).to_json() == text
    record = json.loads(text)
    assert record["evenflow_patch"] == 1
    assert record["edits"][0]["edit"] == edit.name
    assert edit.describe()
    assert not edit.describe().endswith(".")
    assert edit.size == (0 if edit.name == "advice" else 1)


def _loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _program(edit: Edit | None = None, model: Any = softmaxed) -> Program:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (3 * torch.randn(8, 16, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(5)
    ]
    return Program(
        build=lambda seed: model(),
        optimizer=lambda one: torch.optim.SGD(one.parameters(), 0.5, momentum=0.9),
        batches=lambda seed: batches,
        loss=_loss,
        steps=30,
    )


def _trained(program: Program) -> tuple[Any, list[float]]:
    training = program.start(0)
    losses = [float(figures["loss"]) for figures in training.run()]
    return training.model, losses


@pytest.mark.parametrize("name", list(TRAINING_CASES))
def test_printed_code_trains_the_same(name: str) -> None:
    edit = TRAINING_CASES[name]
    patch, program = Patch(edit), _program()
    ours, losses = _trained(patch.program(program))
    code = executed(patch.code(program.build(0)))
    again, plain = executed(patch.code()), lambda one: one

    def with_printed(printed: Any) -> Program:
        edit_model = getattr(printed, "edit_model", plain)
        edit_optimizer = getattr(printed, "edit_optimizer", plain)
        return Program(
            build=lambda seed: edit_model(program.build(seed)),
            optimizer=lambda model: edit_optimizer(program.optimizer(model)),
            batches=program.batches,
            loss=getattr(printed, "edit_loss", plain)(program.loss),
            steps=program.steps,
        )

    for printed in (code, again):
        theirs, their_losses = _trained(with_printed(printed))
        assert their_losses == losses
        assert differences(ours, theirs) == []
    bare, bare_losses = _trained(program)
    assert bare_losses != losses or name == "loss scale"
    assert differences(bare, ours) == ([] if name == "loss scale" else differences(bare, ours) or ["none"])


def _gan_program() -> Program:
    def fake(models: Any, batch: Tensor) -> Tensor:
        return models["generator"](torch.randn(len(batch), 16))

    def d_loss(models: Any, batch: Tensor) -> Tensor:
        real, made = models["discriminator"](batch), models["discriminator"](fake(models, batch).detach())
        return F.binary_cross_entropy_with_logits(
            real, torch.ones_like(real)
        ) + F.binary_cross_entropy_with_logits(made, torch.zeros_like(made))

    def g_loss(models: Any, batch: Tensor) -> Tensor:
        return -F.softplus(models["discriminator"](fake(models, batch))).mean()

    return Program(
        build=lambda seed: gan(),
        optimizer=lambda models: {
            role: torch.optim.Adam(one.parameters(), 1e-3) for role, one in models.items()
        },
        batches=lambda seed: [X, X + 1],
        loss={"discriminator": d_loss, "generator": g_loss},
        steps=6,
    )


@pytest.mark.parametrize("name", list(GAN_CASES))
def test_printed_code_plays_the_same_game(name: str) -> None:
    patch, program = Patch(GAN_CASES[name]), _gan_program()
    ours = patch.program(program).start(0)
    losses = [dict(figures) for figures in ours.run()]
    printed = executed(patch.code(program.build(0)))
    theirs = Program(
        program.build, program.optimizer, program.batches, printed.edit_loss(program.loss), steps=6
    ).start(0)
    assert [dict(figures) for figures in theirs.run()] == losses
    assert differences(ours.model, theirs.model) == []


@pytest.mark.parametrize("module", [nn.Tanh, nn.ReLU])
def test_the_comparison_can_fail(module: type[nn.Module]) -> None:
    one, other = built(chain), built(lambda: chain(act=module))
    assert differences(one, other) == ([] if module is nn.Tanh else ["they print differently"])
    with torch.no_grad():
        other[0].weight[0, 0] = -0.0
        one[0].weight[0, 0] = 0.0
    assert "0.weight" in differences(one, other)[0]
