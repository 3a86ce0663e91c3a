"""Classification: handwritten digits, two spirals, and shapes drawn by a program.

The baseline of K classes that come equally often is ln K, the loss of whoever
gives them all the same probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.errors import MissingPackageError
from evenflow.lab.tasks.task import Task


@dataclass(frozen=True)
class Classes(Task):
    """Targets are class numbers, outputs are logits [batch, classes]."""

    @property
    def classes(self) -> int:
        """K."""
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, target)

    @property
    def baseline(self) -> float:
        """Ln K, in nats."""
        return math.log(self.classes)


@final
@dataclass(frozen=True)
class Digits(Classes):
    """Real handwritten digits, 1797 images of 8×8 pixels (UCI, in scikit-learn; nothing is downloaded).

    Attributes:
        images: Whether inputs are [batch, 1, 8, 8] instead of [batch, 64].

    Pixels are shifted and scaled to mean 0 and variance 1 over all images.
    """

    images: bool = False

    @property
    def classes(self) -> int:
        """Ten digits."""
        return 10

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`; images are drawn with replacement.

        Raises:
            MissingPackageError: scikit-learn is not installed.
        """
        pixels, labels = _digits()
        chosen = torch.randint(len(labels), (size,), generator=source)
        x = pixels[chosen]
        return (x.unflatten(1, (1, 8, 8)) if self.images else x), labels[chosen]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "The task of handwritten digits", "demo") from error
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(labels)


@final
@dataclass(frozen=True)
class Spirals(Classes):
    """Two arms that wind around each other; inputs [batch, 2].

    Attributes:
        turns: Turns of each arm.
        noise: Standard deviation of the points around their arm.

    References:
        K. Lang & M. Witbrock, "Learning to tell two spirals apart", 1988.
    """

    turns: float = 1.5
    noise: float = 0.02

    @property
    def classes(self) -> int:
        """Two arms."""
        return 2

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`."""
        arm = torch.randint(2, (size,), generator=source)
        radius = torch.rand(size, generator=source).sqrt()
        angle = 2 * math.pi * self.turns * radius + math.pi * arm
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        return points + self.noise * torch.randn(size, 2, generator=source), arm


@final
@dataclass(frozen=True)
class Shapes(Classes):
    """Disc, square, triangle or cross, drawn at a random place and size; inputs [batch, 1, side, side].

    Attributes:
        side: Pixels along each side of the image.
        noise: Standard deviation added to every pixel, where ink is 1 and paper 0.
    """

    side: int = 16
    noise: float = 0.1

    @property
    def classes(self) -> int:
        """Four shapes."""
        return 4

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`."""
        shape = torch.randint(4, (size,), generator=source)
        radius = 0.25 + 0.15 * torch.rand(size, 1, 1, generator=source)
        shift = (0.5 - radius) * (2 * torch.rand(2, size, 1, 1, generator=source) - 1)
        line = (torch.arange(self.side) + 0.5) / self.side - 0.5
        x = (line[None, None, :] - shift[0]) / radius
        y = (line[None, :, None] - shift[1]) / radius
        ink = torch.stack(
            [
                x.square() + y.square() <= 1,
                torch.maximum(x.abs(), y.abs()) <= 0.8,
                (y <= 0.8) & (y >= 2 * x.abs() - 1),
                (torch.minimum(x.abs(), y.abs()) <= 0.3) & (torch.maximum(x.abs(), y.abs()) <= 1),
            ],
            dim=1,
        )
        image = ink[torch.arange(size), shape].float()[:, None]
        return image + self.noise * torch.randn(image.shape, generator=source), shape
