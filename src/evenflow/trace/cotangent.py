"""What the backward pass starts from: the user's loss, the model's own, or a random direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenflow.errors import LossError, ModelError
from evenflow.trace.structure import describe, differentiable, tensors_in
from evenflow.trace.troubles import loss_trouble


@dataclass(frozen=True, slots=True)
class Objective:
    """Tensors to start from, and ∂L/∂ each of them.

    Attributes:
        roots: The tensors; one scalar if there is a loss.
        cotangents: Gradient at each, None for a scalar loss.
        source: ``"given"``, ``"output.loss"`` or ``"random cotangent"``.
        value: The loss; None for a random cotangent.
    """

    roots: tuple[Tensor, ...]
    cotangents: tuple[Tensor | None, ...]
    source: str
    value: float | None


def objective(output: Any, loss: Callable[[Any], Tensor] | None, *, seed: int) -> Objective:
    """Decide what to differentiate.

    Args:
        output: What the model returned.
        loss: The user's, or None.
        seed: For the random cotangent.

    Raises:
        LossError: The loss raised, is no scalar, or has no gradient.
        ModelError: There is no loss, and no output that has a gradient.
    """
    if loss is not None:
        try:
            value = loss(output)
        except Exception as error:
            raise loss_trouble(error, output) from error
        return _scalar(value, "given", "the loss")
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return _scalar(own, "output.loss", "output.loss")
    return _random(output, seed)


def _scalar(value: Any, source: str, name: str) -> Objective:
    if not isinstance(value, Tensor):
        raise LossError(f"{_start(name)} is of type {type(value).__name__}; expected a scalar tensor.")
    if value.numel() != 1:
        raise LossError(
            f"{_start(name)} has shape {list(value.shape)}; expected a scalar. "
            "Reduce it, for example with .mean() or reduction='mean'."
        )
    if not value.requires_grad:
        raise LossError(
            f"{_start(name)} has no gradient: nothing on its way requires one. Look for .detach(), .item(), "
            "torch.no_grad() or parameters with requires_grad=False between the parameters and the loss."
        )
    return Objective(
        (value,), (None,) if value.ndim == 0 else (torch.ones_like(value),), source, float(value.detach())
    )


def _random(output: Any, seed: int) -> Objective:
    roots = tuple({id(t): t for t in tensors_in(output) if t.requires_grad and differentiable(t)}.values())
    if not roots:
        raise ModelError(
            f"The model returned {describe(output)}, and nothing in it has a gradient. "
            "Give a loss, or look for .detach(), torch.no_grad() or frozen parameters."
        )
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float32) for t in roots]
    norm = math.sqrt(sum(float(draw.double().square().sum()) for draw in draws))
    cotangents = tuple(
        (draw / norm).to(root.device, root.dtype) for draw, root in zip(draws, roots, strict=True)
    )
    return Objective(roots, cotangents, "random cotangent", None)


def _start(name: str) -> str:
    return name[0].upper() + name[1:]
