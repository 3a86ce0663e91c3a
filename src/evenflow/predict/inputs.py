"""Inputs described instead of given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.table import independent


@dataclass(frozen=True)
class Described:
    """An input of which only shape and statistics are known.

    Attributes:
        shape: Its shape.
        mean: Mean of its entries.
        std: Standard deviation; entries count as independent.
        dtype: Format.
        classes: For integers: drawn uniformly from ``0 … classes − 1``.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    dtype: torch.dtype = torch.float32
    classes: int | None = None

    def field(self) -> Field:
        """What the interpreter knows of it."""
        if self.classes is not None:
            generator = torch.Generator().manual_seed(0)
            values = torch.randint(self.classes, self.shape, generator=generator)
            return Leaf(independent(self.shape, 0.0, 0.0), values)
        return Leaf(independent(self.shape, self.std**2, self.mean))
