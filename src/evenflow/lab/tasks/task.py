"""A task: batches from a seed, a loss, and what a model that learned nothing scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task(ABC):
    """Data without end, made or drawn from a generator of the caller's."""

    @abstractmethod
    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``size`` samples.

        Args:
            size: Samples.
            source: Where all randomness comes from; the same state gives the same batch.
        """

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar."""

    @property
    @abstractmethod
    def baseline(self) -> float:
        """Loss of the best answer that does not look at the input (or, for sequences, remembers nothing)."""
