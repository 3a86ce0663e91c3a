"""Patches as values: their order, what comes off, what is read, and what the public verb does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import evenflow as ef
from evenflow.surgery import (
    Advice,
    Applicability,
    ClipGradient,
    InsertNorm,
    LossScale,
    Patch,
    PatchError,
    Reinitialise,
    SwapActivation,
)
from tests.surgery.nets import built, chain, differences, executed, features

TWO = Patch([SwapActivation(to="relu"), Reinitialise("he")], seed=3)


def test_the_public_verb_takes_a_patch_or_its_file(tmp_path: Path) -> None:
    TWO.save(tmp_path / "patch.json")
    model = built(chain)
    expected = TWO.apply(model)
    assert differences(ef.apply(model, tmp_path / "patch.json"), expected) == []
    assert differences(ef.apply(model, str(tmp_path / "patch.json")), expected) == []
    assert differences(ef.apply(model, TWO), expected) == []
    assert Patch.load(tmp_path / "patch.json") == TWO


def test_the_file_is_for_people(tmp_path: Path) -> None:
    assert json.loads(TWO.to_json()) == {
        "evenflow_patch": 1,
        "seed": 3,
        "edits": [{"edit": "swap_activation", "to": "relu"}, {"edit": "reinitialise", "scheme": "he"}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "p.json is no JSON: "),
        ("[]", 'p.json holds no patch. Expected an object with "evenflow_patch" and "edits".'),
        (
            '{"evenflow_patch": 2, "edits": []}',
            "p.json holds a patch of version 2; this evenflow reads version 1.",
        ),
        (
            '{"evenflow_patch": 1, "seed": "x", "edits": []}',
            "p.json has the seed 'x'. Expected a whole number.",
        ),
        ('{"evenflow_patch": 1, "edits": [3]}', 'An edit is an object with the key "edit", found 3.'),
        (
            '{"evenflow_patch": 1, "edits": [{"edit": "pray"}]}',
            "There is no edit 'pray'. There are: advice, ",
        ),
        (
            '{"evenflow_patch": 1, "edits": [{"edit": "swap_activation"}]}',
            "The edit 'swap_activation' has no key 'to'. Its keys are: to, where, from, calls, settings.",
        ),
        (
            '{"evenflow_patch": 1, "edits": [{"edit": "insert_norm", "kind": "batch", "size": 3}]}',
            "The edit 'insert_norm' has an unknown key 'size'.",
        ),
    ],
)
def test_a_file_that_holds_no_patch_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PatchError) as caught:
        Patch.load(path)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"The patch .*none.json cannot be read: No such file or directory."):
        ef.apply(chain(), tmp_path / "none.json")


def test_patches_add_up() -> None:
    both = TWO + Patch(ClipGradient())
    assert (both.size, both.seed) == (3, 3)
    assert both.touches == {"model", "optimizer"}
    assert both.describe() == (
        "activations become relu; weights are drawn by he; gradients are clipped by norm at 1"
    )
    assert both.applicability is Applicability.UNSAFE
    assert Patch([LossScale(), Advice("rest")]).applicability is Applicability.SAFE
    assert Patch(Advice("rest")).applicability is Applicability.ADVICE
    assert (Patch().size, Patch().describe()) == (0, "nothing")
    assert differences(Patch().apply(chain()), chain()) != ["names"]


def test_only_edits_make_a_patch() -> None:
    with pytest.raises(PatchError, match="A patch is made of edits, found 'relu'"):
        Patch(["relu"])  # type: ignore[list-item]


def test_patches_come_off_in_reverse() -> None:
    model, norm = built(chain), Patch(InsertNorm("layer"))
    once = TWO.apply(model)
    twice = norm.apply(once)
    with pytest.raises(PatchError, match=r"The last patch on the model is another one: layer normalisation"):
        TWO.undo(twice)
    assert differences(norm.undo(twice), once) == []
    assert differences(TWO.undo(norm.undo(twice)), model) == []
    with pytest.raises(PatchError, match=r"The model carries no patch\. Give undo what apply returned"):
        TWO.undo(model)


def test_what_was_trained_since_stays() -> None:
    model, patch = built(chain), Patch(SwapActivation(to="prelu"))
    edited = patch.apply(model)
    with torch.no_grad():
        edited[0].weight.add_(1.0)
    plain = patch.undo(edited)
    torch.testing.assert_close(plain[0].weight, model[0].weight + 1)
    assert isinstance(plain[1], nn.Tanh)


def test_a_copy_of_a_patched_model_can_be_undone() -> None:
    model = built(chain)
    assert differences(TWO.undo(copy.deepcopy(TWO.apply(model))), model) == []


def test_the_seed_decides_and_the_model_does_not() -> None:
    model = built(chain)
    assert differences(TWO.apply(model), TWO.apply(model)) == []
    assert differences(TWO.apply(model), Patch(TWO.edits, seed=4).apply(model))[0] == "0.weight".join(
        (".", "")
    )


def test_models_by_role() -> None:
    models = {"generator": built(chain), "discriminator": built(chain)}
    patch = Patch(
        [SwapActivation(to="relu", where="generator.*"), InsertNorm("layer", where="discriminator.1")]
    )
    edited = patch.apply(models)
    assert [type(one[1]).__name__ for one in edited.values()] == ["ReLU", "Sequential"]
    assert differences(patch.undo(edited), models) == []
    printed = executed(patch.code(models)).edit_model(copy.deepcopy(models))
    assert differences(printed, edited) == []
    assert "model['generator'][i] = nn.ReLU()" in patch.code(models)
    optimizers = patch.optimizer(
        lambda them: {role: torch.optim.SGD([one[0].weight], 0.1) for role, one in them.items()}, edited
    )
    held = {role: sum(len(group["params"]) for group in one.param_groups) for role, one in optimizers.items()}
    assert held == {"generator": 1, "discriminator": 3}


def test_code_of_a_patched_model_is_the_code_of_the_plain_one() -> None:
    model = built(chain)
    assert TWO.code(TWO.apply(model)) == TWO.code(model)
    assert "# By hand: sleep." in Patch([Advice("sleep"), ClipGradient()]).code(model)
    assert "nn.utils.clip_grad_norm_(model.parameters(), 1.0)" in Patch(ClipGradient()).code(model)
    assert "edit_model" not in Patch(ClipGradient()).code(model)


def test_a_replaced_root_cannot_be_replaced_in_place() -> None:
    root = nn.Tanh()
    patch = Patch(SwapActivation(to="relu", where=""))
    assert isinstance(patch.apply(root), nn.ReLU)
    assert isinstance(patch.undo(patch.apply(root)), nn.Tanh)
    with pytest.raises(PatchError, match="replaces the whole model, which cannot be done in place"):
        patch.apply(root, in_place=True)


def test_a_model_that_cannot_be_copied_is_told() -> None:
    model: Any = chain()
    model.cache = model[0].weight * 2
    with pytest.raises(PatchError, match="The model cannot be copied: RuntimeError"):
        TWO.apply(model)
    TWO.apply(model, in_place=True)


def test_new_modules_are_like_the_model() -> None:
    model = built(chain).double().eval()
    edited = Patch(InsertNorm("layer")).apply(model)
    assert {p.dtype for p in edited.parameters()} == {torch.float64}
    assert not any(module.training for module in edited.modules())
    printed = executed(Patch(InsertNorm("layer")).code(model)).edit_model(copy.deepcopy(model))
    assert differences(printed, edited) == []


def test_a_thousand_layers_are_patched_in_seconds_and_printed_in_lines() -> None:
    code = TWO.code(chain(1000, 4))
    assert len(code.splitlines()) < 30
    assert "for i in range(1, 2000, 2):" in code


def test_a_lsuv_program_takes_its_first_batch() -> None:
    batches: list[Any] = [(features(16, 16), None)]
    program = ef.Program(
        lambda seed: built(chain),
        lambda model: torch.optim.SGD(model.parameters(), 0.1),
        lambda seed: batches,
        lambda m, b: m(b[0]).mean(),
    )
    model = Patch(Reinitialise("lsuv")).program(program).build(0)
    assert abs(model[0](batches[0][0]).var() - 1) < 0.05
