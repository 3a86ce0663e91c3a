"""TARGET: every form, and the text of every mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import line_of
from torch import nn

from evenflow.cli.inputs import random_input
from evenflow.cli.target import load_target
from evenflow.errors import TargetError


@pytest.mark.parametrize("name", ["pair", "triple", "as_dict", "as_case"])
@pytest.mark.parametrize("home", ["nets.py", "nets"])
@pytest.mark.usefixtures("folder")
def test_a_callable_brings_its_batch(home: str, name: str) -> None:
    target = load_target(f"{home}:{name}")
    assert type(target.model).__name__ == "Tiny"
    assert torch.equal(target.inputs, torch.ones(2, 4))
    assert (target.loss is None) is (name != "triple")
    assert target.notes == ()


@pytest.mark.parametrize("name", ["alone", "ready", "Tiny"])
@pytest.mark.usefixtures("folder")
def test_a_model_alone_takes_data_from_input(name: str) -> None:
    target = load_target(f"nets.py:{name}", ["5x4"])
    assert type(target.model).__name__ == "Tiny"
    assert target.inputs.shape == (5, 4)
    assert target.notes == ("The inputs are random data from --input: float32 [5, 4].",)


@pytest.mark.usefixtures("folder")
def test_several_inputs_are_positional_arguments() -> None:
    inputs = load_target("nets.py:alone", ["5x4", "5:int64:7"]).inputs
    assert isinstance(inputs, tuple)
    assert [tensor.dtype for tensor in inputs] == [torch.float32, torch.int64]


@pytest.mark.parametrize("name", ["targets", "targets_of_a_module"])
@pytest.mark.usefixtures("folder")
def test_a_loss_of_two_arguments_takes_the_second_half_of_the_batch(name: str) -> None:
    target = load_target(f"nets.py:{name}")
    assert torch.equal(target.inputs, torch.ones(2, 4))
    assert target.loss is not None
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 2]))
    assert torch.equal(target.loss(logits), expected)


@pytest.mark.usefixtures("folder")
def test_the_seed_decides_the_weights_and_the_data() -> None:
    def draw(seed: int) -> torch.Tensor:
        target = load_target("nets.py:alone", ["5x4"], seed=seed)
        return torch.cat([target.inputs.flatten(), target.model.fc.weight.flatten()])  # type: ignore[union-attr, operator]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_file_runs_as_a_program_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "near_by_part.py").write_text("WIDTH = 4\n", encoding="utf-8")
    (folder / "whole.py").write_text(
        "import near_by_part, sys, torch\n"
        "arguments = list(sys.argv)\n"
        "def pair(): return torch.nn.Linear(near_by_part.WIDTH, 1), arguments\n",
        encoding="utf-8",
    )
    monkeypatch.chdir("/")
    before = list(sys.argv)
    assert load_target(f"{folder / 'whole.py'}:pair").inputs == [str(folder / "whole.py")]
    assert sys.argv == before


@pytest.mark.usefixtures("folder")
def test_model_batch_and_targets_go_to_the_device() -> None:
    target = load_target("nets.py:targets", device="meta")
    assert {tensor.device.type for tensor in (target.inputs, *target.model.parameters())} == {"meta"}
    assert target.loss is not None
    assert target.loss(target.model(target.inputs)).device.type == "meta"


OFFERS = "It offers: Tiny, Wide, ready, alone, pair, triple, targets, targets_of_a_module, ..."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nets.py:pear", f"nets.py has no 'pear'. Did you mean 'pair'? {OFFERS}."),
        ("nets:pear", f"nets has no 'pear'. Did you mean 'pair'? {OFFERS}."),
        ("nets.py:xyz", f"nets.py has no 'xyz'. {OFFERS}."),
        ("nets.py:Tiny.bild", f"nets.py has no 'bild'. {OFFERS}."),
        ("nets.py", f"nets.py: say which name in it, as in nets.py:NAME. {OFFERS}."),
        ("net.py:pair", "There is no file net.py. Did you mean 'nets.py'?"),
        ("net:pair", "There is no module net, neither here nor installed. Did you mean 'nets'?"),
        ("zzqy:f", "There is no module zzqy, neither here nor installed."),
        (
            "a b",
            "'a b' is no TARGET. Expected file.py:name, package.module:name, or a transformers config.json.",
        ),
        (
            "nets.py:Wide",
            "nets.py:Wide needs arguments (width), and a TARGET is called without any.\n"
            "Write a function that gives them, and name that one:\n"
            "    def target():\n        return Wide(width=...)",
        ),
        (
            "nets.py:number",
            "nets.py:number gave int. Expected an nn.Module, (model, batch), (model, batch, loss), "
            "or a dict or object with these names.",
        ),
        (
            "nets.py:swapped",
            "nets.py:swapped gave Tensor where the model should be. Expected an nn.Module, (model, batch), "
            "(model, batch, loss), or a dict or object with these names.",
        ),
        (
            "nets.py:four",
            "nets.py:four gave a tuple of 4. Expected an nn.Module, (model, batch), (model, batch, loss), "
            "or a dict or object with these names.",
        ),
        ("nets.py:odd_key", "nets.py:odd_key gave a dict with the key 'modell'. Did you mean 'model'?"),
        (
            "nets.py:loss_class",
            "nets.py:loss_class gave as loss the class MSELoss; call it first. "
            "Expected a callable from the output to a scalar.",
        ),
        (
            "nets.py:lone_batch",
            "nets.py:lone_batch: the loss needs two arguments, (output, targets), so the batch must be a "
            "pair (inputs, targets); it is float32 [2, 4].",
        ),
        (
            "nets.py:broken",
            f"nets.py:broken raised at nets.py:{line_of('bad width')}:\n    ValueError: bad width\n"
            "The whole traceback: --debug",
        ),
        (
            "nets.py:alone",
            "nets.py:alone gives a model but no batch. Either let it return (model, batch) or "
            "(model, batch, loss),\nor name the shape of random data: --input 32x3x224x224   "
            "(token ids: --input 8x128:int64:50257)",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_a_wrong_target_says(text: str, said: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(text)
    assert str(caught.value) == said


@pytest.mark.usefixtures("folder")
def test_an_error_inside_a_library_is_told_with_the_users_line() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("nets.py:fails_in_torch")
    line = line_of('nn.Linear("4", 3)')
    assert str(caught.value).startswith(f"nets.py:fails_in_torch raised at nets.py:{line}:\n    TypeError: ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import sys\nsys.exit(2)\n",
            "Importing own.py failed: it ended the program (SystemExit 2) at own.py:2.\n"
            "Does it read the command line or train when imported? "
            "Move that under: if __name__ == '__main__':",
        ),
        (
            "x = 1\nx +\n",
            "Importing own.py failed at own.py:2:\n",
        ),
        (
            "import no_such_package.part\n",
            "Importing own.py failed at own.py:1:\n"
            "    ModuleNotFoundError: No module named 'no_such_package'\n"
            "Run from the folder that holds it, or install it here: pip install no_such_package",
        ),
        ("x = 1\n", "own.py has no 'f'. It defines no function and no model."),
    ],
)
def test_what_a_file_that_cannot_be_used_says(folder: Path, code: str, said: str) -> None:
    (folder / "own.py").write_text(code, encoding="utf-8")
    with pytest.raises(TargetError) as caught:
        load_target("own.py:f")
    assert str(caught.value).startswith(said)


@pytest.mark.usefixtures("folder")
def test_a_batch_given_twice_is_refused() -> None:
    with pytest.raises(TargetError, match=r"^nets\.py:pair brings a batch of its own\. Leave --input out"):
        load_target("nets.py:pair", ["2x4"])


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(TargetError, match=f"^--device {device} cannot be used here: "):
        load_target("nets.py:pair", device=device)


def test_random_input_follows_its_text() -> None:
    def draw(text: str) -> torch.Tensor:
        return random_input(text, torch.Generator().manual_seed(0))

    normal = draw("200x50")
    assert normal.dtype == torch.float32
    assert abs(normal.mean()) < 4 / 100  # standard error 1/100
    assert abs(normal.std() - 1) < 4 / 141
    ids = draw("1000:int64:7")
    assert ids.dtype == torch.int64
    assert ids.unique().tolist() == list(range(7))
    assert draw("64:int32").unique().tolist() == [0, 1]
    assert draw("2:bfloat16").dtype == torch.bfloat16
    assert draw("8:bool").dtype == torch.bool


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("32,3", "--input 32,3: expected SHAPE[:DTYPE[:HIGH]], for example 32x3x224x224 or, "),
        ("", "--input : expected SHAPE"),
        ("3:flaot32", "--input 3:flaot32: no type flaot32. Did you mean 'float32'? Known: float32, "),
        ("3:float32:9", "--input 3:float32:9: HIGH is for integers; float32 data are standard normal."),
        ("3:int64:0", "--input 3:int64:0: HIGH must be 1 or more; values lie in 0 ... HIGH-1."),
    ],
)
def test_what_a_wrong_input_says(text: str, said: str) -> None:
    with pytest.raises(TargetError) as caught:
        random_input(text, torch.Generator())
    assert str(caught.value).startswith(said)
