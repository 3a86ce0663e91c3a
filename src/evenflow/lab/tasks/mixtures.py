"""Mixtures of Gaussians in the plane, for generative adversarial nets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Ring:
    """Gaussians on a circle, all equally likely.

    Attributes:
        modes: How many.
        radius: Of the circle.
        std: Of each Gaussian, along either axis.
    """

    modes: int = 8
    radius: float = 2.0
    std: float = 0.05

    def sample(self, size: int, source: torch.Generator) -> Tensor:
        """Points [size, 2]."""
        mode = torch.randint(self.modes, (size,), generator=source)
        return self.centres[mode] + self.std * torch.randn(size, 2, generator=source)

    @property
    def centres(self) -> Tensor:
        """Means of the Gaussians [modes, 2]."""
        angle = 2 * math.pi * torch.arange(self.modes) / self.modes
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def covered(self, points: Tensor) -> float:
        """Share of the modes that have a point [n, 2] within three standard deviations."""
        distance = torch.cdist(self.centres, points)
        return float((distance.min(dim=1).values <= 3 * self.std).float().mean())
