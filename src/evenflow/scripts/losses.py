"""The losses of a script: the scalars that it differentiates, without their loss scale."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def follow_losses(tell: Callable[[Tensor], None]) -> Callable[[], None]:
    """Tell of each loss just before it is differentiated.

    Args:
        tell: Gets the loss, and as it was before a ``GradScaler`` if one has scaled it.

    Returns:
        A function that ends it.
    """
    backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale
    latest: tuple[weakref.ref[Tensor], Tensor] | None = None

    @wraps(backward)
    def noticed(*args: Any, **kwargs: Any) -> None:
        loss = _scalar(args[0] if args else kwargs.get("tensors"))
        if loss is not None:
            tell(latest[1] if latest is not None and latest[0]() is loss else loss)
        backward(*args, **kwargs)

    @wraps(scale)
    def scaled(scaler: Any, outputs: Any) -> Any:
        nonlocal latest
        result = scale(scaler, outputs)
        if isinstance(outputs, Tensor) and isinstance(result, Tensor):
            latest = weakref.ref(result), outputs.detach()
        return result

    def end() -> None:
        torch.autograd.backward = backward
        torch.amp.GradScaler.scale = scale  # type: ignore[method-assign]

    torch.autograd.backward = noticed
    torch.amp.GradScaler.scale = scaled  # type: ignore[method-assign, assignment]
    return end


def _scalar(value: Any) -> Tensor | None:
    """The loss among what ``backward`` was called with; None if there is none."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, Tensor) and value.numel() == 1 else None
