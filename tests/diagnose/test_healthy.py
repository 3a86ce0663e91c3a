"""Silence on healthy programs: the traps that fixed thresholds fall into."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from evenflow.diagnose import Severity, diagnose
from evenflow.measure import measure
from tests.diagnose.programs import HEALTHY, Program

NOTED = {
    "tanh_50_glorot": ["EF401"],
    "relu_50_he_narrow": ["EF401"],
    "batchnorm_20": ["EF402"],
    "batchnorm_unit_variance": ["EF402"],
    "layernorm_50_unit_variance": ["EF401"],
    "textbook_sigmoid_of_two_layers": ["EF201", "EF502"],
    "head_of_zeros": ["EF101"],
    "fixup": ["EF101"],
    "rezero": ["EF101"],
    "frozen_backbone": ["EF501"],
    "unused_parameters": ["EF501"],
    "auxiliary_head_that_this_loss_does_not_read": ["EF501"],
    "sigmoid_autoencoder": ["EF502"],
    "hinge_loss_that_is_met": ["EF502"],
}
"""Programs of which something is worth a note."""


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_alarm_on_a_healthy_program(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    program = HEALTHY[name]()
    diagnosis = diagnose(measure(program.model, program.inputs, program.loss))
    assert diagnosis.alarms == ()
    assert [finding.code for finding in diagnosis.findings] == NOTED.get(name, [])
    assert diagnosis.skipped == ()


def _gpt2() -> Program:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = torch.randint(0, 64, (2, 12))
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=4, n_head=4)
    return Program(GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})


def _llama() -> Program:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = torch.randint(0, 64, (2, 12))
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    return Program(LlamaForCausalLM(config), {"input_ids": ids, "labels": ids})


def _bert() -> Program:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64
    )
    ids = torch.randint(0, 64, (2, 12))
    return Program(
        BertModel(config), {"input_ids": ids}, lambda output: output.last_hidden_state.square().mean()
    )


def _albert() -> Program:
    """Weights of .02 at width 32: the head's gain is .1, and a LayerNorm makes up for it below."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    ids = torch.randint(0, 64, (2, 12))
    return Program(
        AlbertForSequenceClassification(config), {"input_ids": ids, "labels": torch.tensor([0, 1])}
    )


def _vit() -> Program:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=16,
        patch_size=4,
    )  # fmt: skip
    config.num_labels = 10
    return Program(
        ViTForImageClassification(config),
        {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.randint(0, 10, (4,))},
    )


def _resnet() -> Program:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    config.num_labels = 10
    return Program(
        ResNetForImageClassification(config),
        {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.randint(0, 10, (4,))},
    )


@pytest.mark.parametrize("build", [_gpt2, _llama, _bert, _albert, _vit, _resnet])
def test_no_alarm_on_small_random_transformers(build: Callable[[], Program]) -> None:
    pytest.importorskip("transformers")
    program = build()
    diagnosis = diagnose(measure(program.model, program.inputs, program.loss))
    assert diagnosis.alarms == ()
    assert [finding.severity for finding in diagnosis.findings] == [Severity.NOTE] * (
        build is _bert
    )  # its pooler
