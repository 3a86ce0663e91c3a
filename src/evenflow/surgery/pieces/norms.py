"""Normalisation that PyTorch has no module for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelRMSNorm(nn.Module):
    """x/√(mean of x² over channels and pixels), times a learned scale per channel.

    Args:
        channels: Size of dimension 1.
        dimensions: Of the picture: 2 for [B, channels, height, width].
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, dimensions: int = 2, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, *[1] * dimensions))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...] to the same shape."""
        mean_square = x.square().flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
        return self.weight * x * torch.rsqrt(mean_square + self.eps)
