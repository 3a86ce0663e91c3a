"""A transformers config as TARGET."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evenflow.cli.target import load_target
from evenflow.errors import MissingPackageError, TargetError

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 50},
    "BertForMaskedLM": {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 12, **SMALL},
    "BertForSequenceClassification": {"model_type": "bert", "vocab_size": 50, **SMALL},
    "BertForTokenClassification": {"model_type": "bert", "vocab_size": 50, **SMALL},
    "LlamaForCausalLM": {"model_type": "llama", "vocab_size": 50, "num_key_value_heads": 2, **SMALL},
    "ViTForImageClassification": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SMALL},
    "ResNetForImageClassification": {
        "model_type": "resnet",
        "hidden_sizes": [4],
        "depths": [1],
        "embedding_size": 4,
    },
    "T5ForConditionalGeneration": {
        "model_type": "t5",
        "vocab_size": 50,
        "num_layers": 1,
        "d_model": 16,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 16,
    },
}


def _write(path: Path, options: dict[str, Any]) -> str:
    path.write_text(json.dumps(options), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_config_gives_the_model_a_batch_and_its_own_loss(architecture: str, tmp_path: Path) -> None:
    options = {**CONFIGS[architecture], "architectures": [architecture]}
    target = load_target(_write(tmp_path / "config.json", options))
    assert type(target.model).__name__ == architecture
    output = target.model(**target.inputs)
    assert output.loss.ndim == 0
    assert output.loss.requires_grad
    (note,) = target.notes
    assert note.startswith(f"{architecture} with random weights; the batch is random too: ")


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "T5ForConditionalGeneration"])
def test_a_config_without_architecture_gives_the_body(architecture: str, tmp_path: Path) -> None:
    target = load_target(_write(tmp_path / "any_name.json", CONFIGS[architecture]))
    assert type(target.model).__name__ == architecture.partition("For")[0] + "Model"
    assert target.model(**target.inputs).last_hidden_state.requires_grad


def test_the_batch_keeps_within_the_vocabulary_and_the_positions(tmp_path: Path) -> None:
    _write(tmp_path / "config.json", {**CONFIGS["BertForMaskedLM"], "architectures": ["BertForMaskedLM"]})
    ids = load_target(str(tmp_path)).inputs["input_ids"]  # the folder stands for its config.json
    assert ids.shape == (4, 12)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 50


def test_the_seed_decides_weights_and_batch(tmp_path: Path) -> None:
    text = _write(tmp_path / "config.json", CONFIGS["GPT2LMHeadModel"])

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        target = load_target(text, seed=seed)
        return target.inputs["input_ids"], next(target.model.parameters())

    first, again, other = draw(3), draw(3), draw(4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_layer": 3}, '{} is no transformers config: it has no "model_type", such as "gpt2".'),
        ({"model_type": "gptt2"}, "has no model 'gptt2'. Did you mean 'gpt2'?"),
        (
            {"model_type": "gpt2", "architectures": ["MyOwnModel"]},
            "has no architecture 'MyOwnModel', and code that a config brings along is not run.",
        ),
        (
            {"model_type": "gpt2", "n_embd": 10, "n_head": 3},
            "{}: transformers cannot build this model:\n    ",
        ),
        (
            {"model_type": "wav2vec2", **SMALL},
            "{}: no batch is known for a model that takes 'input_values'. "
            "Write a function that returns (model, batch) and name it as file.py:function.",
        ),
        (
            {"model_type": "gpt2", "n_layer": 200, "n_embd": 12288},
            "Copy the file and lower the number of layers or the width.",
        ),
    ],
)
def test_what_a_wrong_config_says(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = _write(tmp_path / "config.json", options)
    with pytest.raises(TargetError) as caught:
        load_target(text)
    assert said.format(text) in str(caught.value)


def test_what_a_file_that_is_no_json_says(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(TargetError, match=r"^There is no file .*config\.json\.$"):
        load_target(str(path))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(TargetError, match=r"config\.json is not JSON: Expecting property name"):
        load_target(str(path))


def test_what_a_missing_transformers_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError) as caught:
        load_target(_write(tmp_path / "config.json", CONFIGS["GPT2LMHeadModel"]))
    assert str(caught.value) == (
        "A config file as TARGET needs the package transformers, which is not installed. "
        "Install it with: pip install transformers   (or: pip install 'evenflow[transformers]')"
    )
