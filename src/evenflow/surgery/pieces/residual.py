"""A skip connection around a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + alpha · body(x), where alpha is learned, fixed at 1, or one number per channel.

    Args:
        body: Gives the shape that it takes.
        alpha: Where alpha starts; None: fixed at 1.
        channels: Shape of alpha, such as (64,) or (64, 1, 1) for images; () for a single number.
    """

    def __init__(self, body: nn.Module, alpha: float | None = None, channels: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body = body
        self.alpha = None if alpha is None else nn.Parameter(torch.full(channels, alpha))

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Any shape to the same shape; what else the body takes, such as the edges of a graph, it gets."""
        y: Tensor = self.body(x, *others)
        return x + (y if self.alpha is None else self.alpha * y)
