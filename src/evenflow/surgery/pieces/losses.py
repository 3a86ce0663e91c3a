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
    "float", "double", "to", "view_as", "reshape_as", "type", "clone", "movedim",
)  # fmt: skip
"""Functions after which a probability still belongs to its logit."""
PICKING = ("__getitem__", "gather", "index_select", "select", "take_along_dim", "narrow")
"""Functions that choose among probabilities: what is left of a softmax has logarithms, but no logits."""
GUARDING = ("clamp", "clip", "clamp_min", "clamp_max")
"""What keeps a probability off 0 and 1; a logarithm that is computed from the logit does not need it."""
GUARD = 1e-3
"""The largest number that counts as a guard where it is added: Keras adds 1e-7."""


class Known:
    """What is known of a probability p.

    Args:
        squash: The function that it came from.
        logits: What went in, of p's shape; None where classes were picked.
        log: Gives log p from the logits.
        log_rest: Gives log(1 − p), for a sigmoid.
        dim: Along which a softmax was taken; None for others, and once entries were moved.
    """

    def __init__(
        self,
        squash: str,
        logits: Tensor | None,
        log: Callable[[], Tensor],
        log_rest: Callable[[], Tensor] | None = None,
        dim: int | None = None,
    ) -> None:
        self.dim = dim
        self.squash, self.logits, self.log, self.log_rest = squash, logits, log, log_rest

    def through(self, func: Callable[[Tensor], Tensor], *, logits: bool) -> Known:
        """The same of what a function that moves entries about makes of p."""
        log, rest = self.log, self.log_rest
        return Known(
            self.squash,
            func(self.logits) if logits and self.logits is not None else None,
            lambda: func(log()),
            None if rest is None else lambda: func(rest()),
        )


class RememberLogits(TorchFunctionMode):
    """While it is on, what comes out of a sigmoid or softmax knows what went in, and logarithms use it."""

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
        elif name == "xlogy" and len(args) == 2 and isinstance(args[1], Tensor):
            other = getattr(args[1], "known_logits", None)
            if other is not None:
                return first * other.log()
        value = func(*args, **kwargs)
        if isinstance(value, Tensor) and isinstance(first, Tensor):
            found = self.of_output(name, func, first, known, args, kwargs)
            if found is not None:
                value.known_logits = found  # type: ignore[attr-defined]
            elif known is not None and name == "sum":
                given = args[1] if len(args) > 1 else kwargs.get("dim")
                value.sum_of = first, given  # type: ignore[attr-defined]
        return value

    def of_output(
        self,
        name: str,
        func: Callable[..., Any],
        first: Tensor,
        known: Known | None,
        args: Any,
        kwargs: Mapping[str, Any],
    ) -> Known | None:
        """What is known of what a function gives; None if nothing."""
        if name in SQUASHING:
            if "softmax" not in name:
                return Known(name, first, lambda: F.logsigmoid(first), lambda: F.logsigmoid(-first))
            settings = {key: value for key, value in kwargs.items() if key != "input"}
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return Known(name, first, lambda: F.log_softmax(first, *args[1:], **settings), dim=dim)
        if known is None:
            return None
        other = args[1] if len(args) > 1 else kwargs.get("other")
        number = other if isinstance(other, (int, float)) else None
        if name in RESHAPING:
            return known.through(lambda x: func(x, *args[1:], **kwargs), logits=True)
        if name in PICKING:
            rowwise = "softmax" not in known.squash
            return known.through(lambda x: func(x, *args[1:], **kwargs), logits=rowwise)
        if name in GUARDING and guards(name, args, kwargs):
            return known
        if name in ("add", "__add__", "__radd__") and number is not None and 0 < number <= GUARD:
            return known
        if name in ("rsub", "__rsub__") and number == 1 and known.log_rest is not None:
            assert known.logits is not None
            return Known(known.squash, -known.logits, known.log_rest, known.log)
        if name in ("div", "true_divide", "__truediv__") and known.dim is not None:
            summed, dim = getattr(other, "sum_of", (None, None))
            if summed is first and dim in (known.dim, known.dim - first.ndim, known.dim + first.ndim):
                return known  # Keras divides by the sum, and it is 1 already
        return None

    def on_logits(self, name: str, known: Known, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The loss of that name on logits instead; None if it is none of those that expect them."""
        squash, logits, rest = known.squash, known.logits, args[1:]
        if name == "log" and squash in ("sigmoid", "softmax"):
            return known.log()
        if logits is None:
            return None
        if name == "cross_entropy":
            return F.cross_entropy(logits, *rest, **kwargs)
        if name == "nll_loss" and squash == "softmax":
            return F.cross_entropy(logits, *rest, **kwargs)
        if name == "binary_cross_entropy" and squash == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, *rest, **kwargs)
        if name == "binary_cross_entropy_with_logits" and squash == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, *rest, **kwargs)
        return None


def guards(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a clamp does no more than keep a probability off 0 and 1."""
    given = list(args[1:])
    one_sided = name in ("clamp_min", "clamp_max")
    low = None if name == "clamp_max" else given.pop(0) if given else kwargs.get("min")
    high = None if name == "clamp_min" else given.pop(0) if given else kwargs.get("max")
    bounds = [one for one in (low, high) if one is not None]
    if not all(isinstance(one, (int, float)) for one in bounds) or (one_sided and not bounds):
        return False
    return (low is None or low <= GUARD) and (high is None or high >= 1 - GUARD)


def on_logits(loss: Loss) -> Loss:
    """The loss with cross-entropies computed from logits where it was given probabilities."""

    def better(model: Any, batch: Any) -> Tensor:
        with RememberLogits():
            return loss(model, batch)

    return better


def logits_of(output: Tensor) -> Tensor:
    """What went into the sigmoid or softmax that a model ends with; the output itself if there is none."""
    known = getattr(output, "known_logits", None)
    return output if known is None or known.logits is None else known.logits


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
