"""Losses changed where they are called, for code that has no loss function to hand over: a step, a script.

Each is a context manager. While it is on, the loss functions of PyTorch that the
code calls, or its ``backward``, do as an edit says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from evenflow.surgery.pieces.losses import RememberLogits, logits_of, loss_between

LOSSES = (
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss",
    "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "multi_margin_loss", "poisson_nll_loss",
    "kl_div",
)  # fmt: skip
"""Functions of (input, target) that stand for a loss."""


class LossCalls(RememberLogits):
    """While it is on, PyTorch's loss functions of (input, target) compute another loss.

    Args:
        kind: As in ``set_loss``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in LOSSES:
            output = args[0] if args else kwargs["input"]
            targets = args[1] if len(args) > 1 else kwargs["target"]
            if output.requires_grad:
                self.calls += 1
                return loss_between(self.kind, output if self.kind == "mse" else logits_of(output), targets)
        return super().__torch_function__(func, types, args, kwargs)


class ScaledBackward:
    """While it is on, a scalar is multiplied by a number before it is differentiated.

    Args:
        factor: The number.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.original: Callable[..., None] = torch.autograd.backward

    def __enter__(self) -> ScaledBackward:
        self.original = torch.autograd.backward
        torch.autograd.backward = self.backward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.autograd.backward = self.original

    def backward(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        """In place of ``torch.autograd.backward``."""
        if isinstance(tensors, Tensor) and tensors.ndim == 0:
            tensors = tensors * self.factor
        elif isinstance(tensors, (tuple, list)) and len(tensors) == 1 and tensors[0].ndim == 0:
            tensors = [tensors[0] * self.factor]
        self.original(tensors, *args, **kwargs)
