"""Losses around a loss: each takes a function of (model, batch) and gives another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Loss = Callable[[Any, Any], Tensor]

SQUASHING = ("sigmoid", "softmax", "log_softmax", "logsigmoid")
RESHAPING = (
    "squeeze", "unsqueeze", "view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous",
    "float", "double", "to", "__getitem__", "view_as", "reshape_as", "type", "clone", "movedim",
)  # fmt: skip
"""Functions after which a probability still belongs to its logit."""


class RememberLogits(TorchFunctionMode):
    """While it is on, what comes out of a sigmoid or softmax knows what went in."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else kwargs.get("input")
        known = getattr(first, "known_logits", None) if isinstance(first, Tensor) else None
        if known is not None:
            swapped = self.on_logits(name, known, args, kwargs)
            if swapped is not None:
                return swapped
        value = func(*args, **kwargs)
        if isinstance(value, Tensor) and isinstance(first, Tensor):
            if name in SQUASHING:
                value.known_logits = (name, first)  # type: ignore[attr-defined]
            elif known is not None and name in RESHAPING:
                value.known_logits = (known[0], func(known[1], *args[1:], **kwargs))  # type: ignore[attr-defined]
        return value

    def on_logits(
        self, name: str, known: tuple[str, Tensor], args: Any, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The loss of that name on logits instead; None if it is none of those that expect them."""
        squash, logits = known
        rest = args[1:]
        if name == "cross_entropy":
            return F.cross_entropy(logits, *rest, **kwargs)
        if name == "nll_loss" and squash == "softmax":
            return F.cross_entropy(logits, *rest, **kwargs)
        if name == "binary_cross_entropy" and squash == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, *rest, **kwargs)
        if name == "binary_cross_entropy_with_logits" and squash == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, *rest, **kwargs)
        return None


def on_logits(loss: Loss) -> Loss:
    """The loss with cross-entropies computed from logits where it was given probabilities."""

    def better(model: Any, batch: Any) -> Tensor:
        with RememberLogits():
            return loss(model, batch)

    return better


def logits_of(output: Tensor) -> Tensor:
    """What went into the sigmoid or softmax that a model ends with; the output itself if there is none."""
    known = getattr(output, "known_logits", None)
    return output if known is None else known[1]


def set_loss(kind: str) -> Loss:
    """A loss for batches (inputs, targets), on the model's logits where it ends with sigmoid or softmax."""

    def loss(model: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        with RememberLogits():
            output = logits_of(model(inputs)) if kind != "mse" else model(inputs)
        return loss_between(kind, output, targets)

    return loss


def loss_between(kind: str, output: Tensor, targets: Tensor) -> Tensor:
    """``cross_entropy``, ``bce_with_logits`` or ``mse`` of an output, for targets of either kind."""
    output = output.float()
    if kind == "cross_entropy":
        classes = output.flatten(0, -2)
        if targets.is_floating_point() or targets.shape == output.shape:
            return F.cross_entropy(classes, targets.reshape(classes.shape).to(classes.dtype))
        return F.cross_entropy(classes, targets.flatten())
    targets = (
        targets.to(output.dtype).reshape(output.shape)
        if targets.numel() == output.numel()
        else F.one_hot(targets, output.shape[-1]).to(output.dtype)
    )
    if kind == "bce_with_logits":
        return F.binary_cross_entropy_with_logits(output, targets)
    return F.mse_loss(output, targets)


def scaled_loss(loss: Loss, factor: float) -> Loss:
    """The loss times a number."""
    return lambda model, batch: loss(model, batch) * factor


def autocast_loss(loss: Loss, device: str, dtype: torch.dtype) -> Loss:
    """The loss computed under autocast; autocast of the program's own inside it wins."""

    def cast(model: Any, batch: Any) -> Tensor:
        with torch.autocast(device, dtype):
            return loss(model, batch).float()

    return cast
