"""What went wrong in the user's code, in a few lines that say where and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

from evenflow.errors import LossError, ModelError
from evenflow.trace.source import line_of
from evenflow.trace.structure import describe

_SHAPES = re.compile(r"shape|size|dimension|expected .* channels|must match", re.IGNORECASE)
_DTYPES = re.compile(r"dtype|scalar type|expected .*(Long|Float|Half|Int)", re.IGNORECASE)
_DEVICES = re.compile(r"same device|device type|on device", re.IGNORECASE)


def model_trouble(model: nn.Module, error: Exception, inputs: Any) -> ModelError:
    """The model raised ``error`` when called with ``inputs``."""
    frames = list(_frames(error))
    path = next((path for frame in frames if (path := _module_path(model, frame)) is not None), None)
    inside = f" in {path} ({type(model.get_submodule(path)).__name__})" if path else ""
    return ModelError(
        f"The model raised {type(error).__name__}{inside}{_at(frames)}: {_short(error)}\n"
        f"It was called with {describe(inputs)}.\n{_advice(error)}"
    )


def loss_trouble(error: Exception, output: Any) -> LossError:
    """The loss raised ``error`` when called with ``output``."""
    frames = list(_frames(error))
    return LossError(
        f"The loss raised {type(error).__name__}{_at(frames)}: {_short(error)}\n"
        f"It was called with the model's output alone: {describe(output)}.\n"
        "Close over the targets: loss = lambda output: F.cross_entropy(output, target)."
    )


def backward_trouble(error: Exception) -> ModelError:
    """The backward pass raised ``error``."""
    frames = list(_frames(error))
    return ModelError(
        f"The backward pass raised {type(error).__name__}{_at(frames)}: {_short(error)}\n"
        "The forward pass went through. Run loss.backward() by itself; "
        "torch.autograd.set_detect_anomaly(True) names the forward op that it belongs to."
    )


def _advice(error: Exception) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "argument" in text:
        return "Give a tuple for several positional arguments, a dict for named ones."
    if _DEVICES.search(text):
        return "Put the model and the batch on one device."
    if _DTYPES.search(text):
        return (
            "Give the batch in the format that the first layer takes: long for token ids, float for images."
        )
    if _SHAPES.search(text):
        return "Check the batch's shape against what that layer expects."
    return "Run the model on this batch by itself to see the full traceback."


def _frames(error: Exception) -> Iterator[FrameType]:
    """Frames of the traceback, innermost first."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    yield from reversed(frames)


def _module_path(model: nn.Module, frame: FrameType) -> str | None:
    module = frame.f_locals.get("self")
    if not isinstance(module, nn.Module):
        return None
    return next((path for path, candidate in model.named_modules() if candidate is module), None)


def _at(frames: list[FrameType]) -> str:
    source = next((line for frame in frames if (line := line_of(frame)) is not None), None)
    return f" at {source}" if source else ""


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "(no message)"
