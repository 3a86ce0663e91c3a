"""TARGET: what a command is to look at, and how it is loaded.

Three forms name one: ``file.py:name``, ``package.module:name`` and a
transformers config (a JSON file, or a folder that holds ``config.json``). The
name stands for one of these, or for a callable without arguments that gives one:

* a model,
* a tuple ``(model, batch)`` or ``(model, batch, loss)``,
* a dict or object with ``model`` and, if wanted, ``batch`` and ``loss``.

The batch is what the model is called with. The loss is called with the model's
output; a loss that needs two arguments, like ``F.cross_entropy``, takes the batch
as a pair ``(inputs, targets)``.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evenflow.cli.errors import nearest
from evenflow.cli.inputs import random_input
from evenflow.cli.module import Place, called, find
from evenflow.cli.parts import Plan, Target
from evenflow.errors import TargetError
from evenflow.trace.pairing import PairLoss, moved, needed_arguments

_PARTS = ("model", "batch", "loss")
_GIVES = "an nn.Module, (model, batch), (model, batch, loss), or a dict or object with these names"


def load_target(text: str, inputs: Sequence[str] = (), *, seed: int = 0, device: str = "cpu") -> Target:
    """The model of a TARGET with its batch, on ``device``.

    Seeds the global random state of Python, NumPy and PyTorch before the
    target's own code runs.

    Args:
        text: The TARGET.
        inputs: Texts of ``--input``, in the order in which the model takes them.
        seed: For weights and made-up data.
        device: As PyTorch spells it.

    Raises:
        TargetError: There is no such target, its code raised, or it gave
            something else than a model.
        MissingPackageError: A transformers config, without transformers.
    """
    where = _device(device)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the user's code may draw from the global state)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = _config_file(text)
    if config is not None:
        from evenflow.cli.config import plan_of_config, with_weights

        target = with_weights(plan_of_config(config, generator), config)
    else:
        place, found = find(text)
        ready = isinstance(found, nn.Module) or not callable(found)
        target = _read(place, found if ready else called(place, found))
    target = _with_inputs(target, text, [random_input(one, generator) for one in inputs])
    return replace(target, model=target.model.to(where), inputs=moved(target.inputs, where))


DEPTH_ARGUMENTS = ("depth", "layers", "num_layers", "n_layers", "n_layer", "blocks", "num_blocks")
"""What a builder may call its depth."""
FIRST_DEPTH = 8
"""For a builder that has no default depth."""


def load_plan(text: str, inputs: Sequence[str] = (), *, seed: int = 0) -> Plan:
    """What a TARGET gives for a prediction; weights are only made by a function that brings its own batch.

    Args:
        text: The TARGET.
        inputs: Texts of ``--input``.
        seed: For what the target's own code and this draw.

    Raises:
        TargetError: As :func:`load_target`.
        MissingPackageError: Likewise.
    """
    generator = torch.Generator().manual_seed(seed)
    config = _config_file(text)
    if config is not None:
        from evenflow.cli.config import plan_of_config

        return plan_of_config(config, generator)
    _, found = find(text)
    at_depth = None
    if callable(found) and not isinstance(found, nn.Module) and inputs:
        name = next((name for name in DEPTH_ARGUMENTS if name in _arguments(found)), None)
        if name is not None:
            at_depth = partial(_with_argument, found, name)
        needed = needed_arguments(found)
        if not needed or needed == [name]:
            build = found if not needed else partial(found, **{needed[0]: FIRST_DEPTH})
            made = [random_input(one, generator) for one in inputs]
            note = f"The inputs are random data from --input: {', '.join(map(_described, made))}."
            batch = made[0] if len(made) == 1 else tuple(made)
            return Plan(build, batch, at_depth=at_depth, notes=(note,))
    target = load_target(text, inputs, seed=seed)
    return Plan(target.model, target.inputs, target.loss, notes=target.notes)


def _with_argument(function: Callable[..., Any], name: str, value: int) -> Callable[[], Any]:
    return partial(function, **{name: value})


def _arguments(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _config_file(text: str) -> Path | None:
    path = Path(text)
    if path.is_dir() and (path / "config.json").is_file():
        return path / "config.json"
    return path if path.suffix == ".json" else None


def _read(place: Place, given: Any) -> Target:
    """The parts of what the callable gave."""
    if isinstance(given, nn.Module):
        return Target(given)
    if isinstance(given, Mapping):
        parts = dict(given)
    elif isinstance(given, (tuple, list)):
        if not 1 <= len(given) <= len(_PARTS):
            raise TargetError(f"{place} gave a {type(given).__name__} of {len(given)}. Expected {_GIVES}.")
        parts = dict(zip(_PARTS, given, strict=False))
    else:
        parts = {name: getattr(given, name) for name in (*_PARTS, "inputs") if hasattr(given, name)}
    if "inputs" in parts and "batch" not in parts:
        parts["batch"] = parts.pop("inputs")
    strange = [str(name) for name in parts if name not in _PARTS]
    if strange:
        hint = nearest(strange[0], _PARTS) or "Its keys may be: model, batch, loss."
        raise TargetError(f"{place} gave a dict with the key '{strange[0]}'. {hint}")
    model = parts.get("model")
    if not isinstance(model, nn.Module):
        what = f"{type(model).__name__} where the model should be" if parts else type(given).__name__
        raise TargetError(f"{place} gave {what}. Expected {_GIVES}.")
    return _paired(place, Target(model, parts.get("batch"), parts.get("loss")))


def _paired(place: Place, target: Target) -> Target:
    """A loss of two arguments takes the second half of the batch."""
    loss: Any = target.loss
    if loss is None:
        return target
    if isinstance(loss, type) or not callable(loss):
        what = f"the class {loss.__name__}; call it first" if isinstance(loss, type) else type(loss).__name__
        raise TargetError(f"{place} gave as loss {what}. Expected a callable from the output to a scalar.")
    if len(needed_arguments(loss)) != 2:
        return target
    if not isinstance(target.inputs, (tuple, list)) or len(target.inputs) != 2:
        raise TargetError(
            f"{place}: the loss needs two arguments, (output, targets), so the batch must be a pair "
            f"(inputs, targets); it is {_described(target.inputs)}."
        )
    inputs, targets = target.inputs
    return replace(target, inputs=inputs, loss=PairLoss(loss, targets))


def _with_inputs(target: Target, text: str, made: list[Tensor]) -> Target:
    """The target with data from ``--input``, which must be given exactly where the target has none."""
    if not made:
        if target.inputs is None:
            raise TargetError(
                f"{text} gives a model but no batch. Either let it return (model, batch) or "
                "(model, batch, loss),\nor name the shape of random data: "
                "--input 32x3x224x224   (token ids: --input 8x128:int64:50257)"
            )
        return target
    if target.inputs is not None:
        raise TargetError(
            f"{text} brings a batch of its own. Leave --input out, or name a target without one."
        )
    shapes = ", ".join(_described(tensor) for tensor in made)
    note = f"The inputs are random data from --input: {shapes}."
    inputs = made[0] if len(made) == 1 else tuple(made)
    return replace(target, inputs=inputs, notes=(*target.notes, note))


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except Exception as error:  # PyTorch raises AssertionError, RuntimeError and others, by device
        reason = str(error).splitlines()[0]
        raise TargetError(f"--device {text} cannot be used here: {reason}") from error
    return device


def _described(value: Any) -> str:
    from evenflow.trace.structure import describe

    return describe(value)
