"""A transformers config as TARGET: the model with random weights, and a small random batch.

Nothing is downloaded and no code from outside the transformers package is run.
The batch follows from the config: token ids within the vocabulary, or pixels
from a standard normal, with labels where the model's own head takes them.
Gradient flow at initialisation depends on shapes and on the init, hardly on what
the tokens say; the notes still tell that the data are random.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.cli.errors import nearest
from evenflow.cli.parts import Plan, Target
from evenflow.errors import MissingPackageError, TargetError

BATCH = 4
TOKENS = 64
IMAGE_SIDE = 224
"""For configs that leave the size open, such as ResNet's: the side of ImageNet's crops."""

_COPIES = 3
"""Weights, their gradients, and the copy from which the weights are put back."""


def plan_of_config(path: Path, generator: torch.Generator) -> Plan:
    """The builder of a config file's model, with a batch; no weights are made.

    Args:
        path: A JSON file with ``model_type`` and, if the head matters, ``architectures``.
        generator: Source of the batch.

    Raises:
        MissingPackageError: transformers is not installed.
        TargetError: The file is no such config, or the model takes inputs other
            than tokens and pixels.
    """
    options = _read(path)
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("transformers", "A config file as TARGET", "transformers") from error
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    kind = options.pop("model_type")
    kinds = transformers.CONFIG_MAPPING.keys()
    if kind not in kinds:
        hint = (
            nearest(kind, kinds) or "Is it newer than the installed version, or does it bring its own code?"
        )
        raise TargetError(f"{path}: transformers {transformers.__version__} has no model '{kind}'. {hint}")
    try:
        config = transformers.AutoConfig.for_model(kind, **options)
        build = _builder(transformers, config, path)
        with torch.device("meta"):
            model = build()
    except TargetError:
        raise
    except Exception as error:
        raise _not_built(path, error) from error
    batch = _batch(model, config, generator, path)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
    note = f"{type(model).__name__} with random weights; the batch is random too: {shapes}."

    def at_depth(depth: int) -> Callable[[], nn.Module]:
        deeper = copy.deepcopy(config)
        deeper.num_hidden_layers = depth
        if getattr(deeper, "layer_types", None):  # one entry for each layer
            deeper.layer_types = [deeper.layer_types[k % len(deeper.layer_types)] for k in range(depth)]
        build: Callable[[], nn.Module] = _builder(transformers, deeper, path)
        return build

    has_depth = isinstance(getattr(config, "num_hidden_layers", None), int)
    return Plan(build, batch, at_depth=at_depth if has_depth else None, notes=(note,))


def with_weights(plan: Plan, path: Path) -> Target:
    """The model itself; its weights follow PyTorch's global random state.

    Raises:
        TargetError: It does not fit into memory, or cannot be built.
    """
    assert not isinstance(plan.build, nn.Module), "a config gives a builder"
    try:
        with torch.device("meta"):
            size = sum(weight.numel() * weight.element_size() for weight in plan.build().parameters())
        _must_fit(size, path)
        model = plan.build()
    except TargetError:
        raise
    except Exception as error:
        raise _not_built(path, error) from error
    return Target(model, plan.inputs, notes=plan.notes)


def _not_built(path: Path, error: Exception) -> TargetError:
    return TargetError(f"{path}: transformers cannot build this model:\n    {error}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TargetError(f"There is no file {path}.")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TargetError(f"{path} is not JSON: {error}.") from error
    if not isinstance(options, dict) or not isinstance(options.get("model_type"), str):
        raise TargetError(f'{path} is no transformers config: it has no "model_type", such as "gpt2".')
    return options


def _builder(transformers: Any, config: Any, path: Path) -> Any:
    """A callable that makes the model: with the head that the config names, else without a head."""
    named = (config.architectures or [None])[0]
    if named is None:
        return lambda: transformers.AutoModel.from_config(config)
    architecture = getattr(transformers, named, None)
    if architecture is None:
        raise TargetError(
            f"{path}: transformers {transformers.__version__} has no architecture '{named}', "
            "and code that a config brings along is not run."
        )
    return lambda: architecture(config)


def _must_fit(size: int, path: Path) -> None:
    """Refuse what would end in the system killing the process."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return
    if _COPIES * size > memory:
        raise TargetError(
            f"{path}: the weights take {size / 1e9:.1f} GB; with gradients and a copy that is "
            f"{_COPIES * size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB.\n"
            "Copy the file and lower the number of layers or the width."
        )


def _batch(model: nn.Module, config: Any, generator: torch.Generator, path: Path) -> dict[str, Tensor]:
    """Arguments of the model by name."""
    accepted = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", ""))

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    if main == "input_ids" and hasattr(config, "vocab_size"):
        tokens = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
        batch = {main: integers(config.vocab_size, BATCH, tokens)}
    elif main == "pixel_values":
        side = getattr(config, "image_size", None) or IMAGE_SIDE
        height, width = (side, side) if isinstance(side, int) else side
        channels = getattr(config, "num_channels", None) or 3
        batch = {main: torch.randn(BATCH, channels, height, width, generator=generator)}
    else:
        raise TargetError(
            f"{path}: no batch is known for a model that takes '{main}'. "
            "Write a function that returns (model, batch) and name it as file.py:function."
        )
    if config.is_encoder_decoder and "decoder_input_ids" in accepted:
        batch["decoder_input_ids"] = batch[main]
    if "labels" in accepted:
        head = type(model).__name__
        if head.endswith(("ForSequenceClassification", "ForImageClassification")):
            batch["labels"] = integers(config.num_labels, BATCH)
        elif head.endswith("ForTokenClassification"):
            batch["labels"] = integers(config.num_labels, *batch[main].shape)
        elif main == "input_ids":  # the language models: labels are tokens
            batch["labels"] = batch[main]
    return batch
