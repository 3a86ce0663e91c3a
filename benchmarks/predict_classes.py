"""How many model classes of transformers predict follows, one small configuration each.

Every class ends in one of six ways, each counted and named:

* whole: every tensor that has a gradient or is an activation has its statistics;
* in part: some have none; the ops that stand in the way are named;
* abstained: a message instead of a prediction;
* too slow: it took more processor time than a class is given;
* no model: this benchmark found no configuration or inputs with which the real
  model runs, so that nothing is said about predict;
* crashed: an exception that is no message to the user, a mistake of ours.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.limits import at_most
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from evenflow.errors import EvenflowError
from evenflow.flow import Status
from evenflow.predict import predict

OUTCOMES = ("whole", "in part", "abstained", "too slow", "no model", "crashed")
SECONDS = 60.0
"""Processor time that one class is given."""
REFUSALS = (
    *(ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, ImportError),
    StrictDataclassError,
)
"""What a model class raises if it does not like its configuration or inputs."""

SMALL = {
    "vocab_size": 200,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "dim": 64,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "d_ff": 128,
    "hidden_dim": 128,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "embedding_size": 64,
    "d_kv": 16,
    "image_size": 32,
    "patch_size": 8,
    "rotary_dim": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "word_embed_proj_dim": 64,
    "num_local_experts": 4,
    "num_experts": 4,
    "sliding_window": 16,
    "attention_window": 8,
}
OWN: dict[str, dict[str, Any]] = {
    "DeepseekV2Model": {"head_dim": 16, "num_key_value_heads": 4},
    "DeepseekV3Model": {"head_dim": 16, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    "Mamba2Model": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "HieraModel": {"image_size": [32, 32], "patch_size": [7, 7]},
    "ConvNextModel": {"patch_size": 2},
    "ConvNextV2Model": {"patch_size": 2},
}
"""Fields in which a class must differ from :data:`SMALL`."""
DECODERS = """
    GPT2 GPTNeo GPTJ GPTNeoX GPTBigCode OpenAIGPT CTRL CodeGen OPT XGLM BioGpt Bloom Mpt Falcon
    Persimmon Phi Phi3 Llama Mistral Ministral Qwen2 Qwen3 Gemma Gemma2 Gemma3Text Olmo Olmo2 Olmo3
    Cohere Cohere2 StableLm Starcoder2 Granite Glm Glm4 Helium Nemotron SmolLM3 Exaone4 Arcee SeedOss
    Mixtral Qwen2Moe Qwen3Moe Olmoe Phimoe GptOss GraniteMoe DeepseekV2 DeepseekV3 Ernie4_5 Mamba Mamba2
    Rwkv
"""
ENCODERS = """
    Bert Roberta RobertaPreLayerNorm XLMRoberta XLMRobertaXL Camembert Electra DistilBert Albert Deberta
    DebertaV2 MPNet Ernie ConvBert Nystromformer FNet MobileBert SqueezeBert RoFormer ModernBert
    EuroBert MegatronBert RemBert Data2VecText Esm LayoutLM Lilt Splinter RoCBert IBert BigBird Funnel
    Canine
"""
TWO_STACKS = """
    T5 MT5 UMT5 LongT5 SwitchTransformers Bart MBart Pegasus Marian Blenderbot BlenderbotSmall M2M100
    PLBart ProphetNet LED
"""
VISION = """
    ViT DeiT Beit Data2VecVision Dinov2 Dinov2WithRegisters ViTMSN ViTMAE IJepa SiglipVision CLIPVision
    Yolos Hiera ConvNext ConvNextV2 ResNet RegNet Bit MobileNetV1 MobileNetV2 EfficientNet MobileViT
    Swin Swinv2 Cvt Levit PoolFormer Pvt PvtV2 Segformer FocalNet
"""
SOUND = "Wav2Vec2 Hubert UniSpeech"


class TooSlowError(BaseException):
    """No Exception, so that nothing that goes on after an error catches it."""


@dataclass(frozen=True)
class Outcome:
    """How one class ended.

    Attributes:
        name: The class.
        kind: One of :data:`OUTCOMES`.
        why: The ops without a rule, or the message.
        known: Rows with statistics.
        rows: Rows that should have some.
        seconds: Processor time.
    """

    name: str
    kind: str
    why: str = ""
    known: int = 0
    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A class with a configuration and what to call it with."""

    kind: Any
    config: Any
    inputs: dict[str, Tensor]

    def build(self) -> nn.Module:
        model: nn.Module = self.kind(self.config)
        return model


def names() -> Iterator[tuple[str, str]]:
    """Class and modality."""
    groups = {"text": DECODERS + ENCODERS, "both": TWO_STACKS, "vision": VISION, "sound": SOUND}
    for modality, group in groups.items():
        yield from ((f"{name}Model", modality) for name in group.split())


def subject(name: str, modality: str) -> Subject:
    """A class with the smallest changes to its own configuration that it accepts.

    Raises:
        REFUSALS: It accepts none.
    """
    import transformers

    kind = getattr(transformers, name)
    config = _small(kind.config_class, OWN.get(name, {}))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 200, (2, 16), generator=generator)
    if modality == "vision":
        size = getattr(config, "image_size", None)
        size = size if isinstance(size, int) else 32
        return Subject(kind, config, {"pixel_values": torch.randn(2, 3, size, size, generator=generator)})
    if modality == "sound":
        return Subject(kind, config, {"input_values": torch.randn(2, 4000, generator=generator)})
    if modality == "both":
        others = torch.randint(3, 200, (2, 8), generator=generator)
        return Subject(kind, config, {"input_ids": tokens, "decoder_input_ids": others})
    return Subject(kind, config, {"input_ids": tokens})


def _small(config_class: Any, own: dict[str, Any]) -> Any:
    """A small configuration; fields that its own checks refuse are left at their defaults."""
    known = set(getattr(config_class, "__dataclass_fields__", {})) - set(
        getattr(config_class, "attribute_map", {})
    )
    wanted = {key: value for key, value in (SMALL | own).items() if key in known}
    layers = {key for key in wanted if "layer" in key}
    last: Exception | None = None
    for left_out in (set(), layers, {"image_size", "patch_size"}, {"head_dim"}):
        try:
            return config_class(**{key: value for key, value in wanted.items() if key not in left_out})
        except REFUSALS as error:
            last = error
    assert last is not None
    raise last


def outcome(name: str, modality: str, seconds: float = SECONDS) -> Outcome:
    """Predict one class within its limit."""
    try:
        given = subject(name, modality)
    except REFUSALS as error:
        return Outcome(name, "no model", _line(error))
    start = time.process_time()
    try:
        with at_most(seconds, TooSlowError):
            flow = predict(given.build, given.inputs)
    except TooSlowError:
        return Outcome(name, "too slow", f"more than {seconds:.0f} s", seconds=seconds)
    except (*REFUSALS, AssertionError, ArithmeticError) as error:
        refused = _refusal(given, seconds)
        if refused:
            return Outcome(name, "no model", refused)
        kind = "abstained" if isinstance(error, EvenflowError) else "crashed"
        return Outcome(name, kind, _line(error), seconds=time.process_time() - start)
    took = time.process_time() - start
    rows = [row for row in flow if row.status is Status.OK]
    known = sum(row.stats is not None for row in rows)
    gaps = [re.sub(r" \(\d+×\): unknown.*", "", note) for note in flow.notes if "unknown, and all" in note]
    return Outcome(
        name, "whole" if known == len(rows) else "in part", "; ".join(gaps), known, len(rows), took
    )


def _refusal(given: Subject, seconds: float) -> str:
    """Why the real model does not run either; empty if it does."""
    try:
        with at_most(seconds, TooSlowError), torch.no_grad():
            given.build()(**given.inputs)
    except TooSlowError:
        return f"the real model takes more than {seconds:.0f} s"
    except REFUSALS as error:
        return "the real model does not run: " + _line(error)
    return ""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def sweep(words: Sequence[str] = (), report: Callable[[Outcome], None] | None = None) -> list[Outcome]:
    """All classes, or those whose names contain one of the words."""
    found = []
    for name, modality in names():
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        found.append(outcome(name, modality))
        if report is not None:
            report(found[-1])
    return found


def show(found: Outcome) -> None:
    """One line."""
    counts = f"{found.known}/{found.rows}" if found.rows else ""
    print(
        f"{found.kind:10s} {found.name:28s} {counts:>9s} {found.seconds:5.1f} s  {found.why[:240]}",
        flush=True,
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """The counts, and the gaps by the number of classes that they touch."""
    counts = Counter(each.kind for each in outcomes)
    gaps = Counter(
        re.sub(r"\d+", "N", gap)
        for each in outcomes
        for gap in set(each.why.split("; "))
        if each.kind == "in part"
    )
    lines = [f"{len(outcomes)} classes: " + ", ".join(f"{counts[kind]} {kind}" for kind in OUTCOMES)]
    lines += [f"{count:4d}  {gap}" for gap, count in gaps.most_common(40)]
    return "\n".join(lines)
