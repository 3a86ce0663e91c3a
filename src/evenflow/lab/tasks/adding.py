"""The adding problem: sum the two marked numbers of a long sequence.

Each step shows a number from U(0, 1) and a mark; one step in each half of the
sequence is marked. The answer is the sum of the two marked numbers. Whoever
always says 1, the mean, has the variance of the sum as mean squared error:
2 · 1/12 = .1667 whatever the length. The task counts as solved below .01.

References:
    S. Hochreiter & J. Schmidhuber, "Long short-term memory", 1997, section 5.4;
    in this form Q. Le et al., "A simple way to initialize recurrent networks of
    rectified linear units", 2015, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.lab.tasks.task import Task


@final
@dataclass(frozen=True)
class Adding(Task):
    """Inputs [batch, length, 2], targets [batch, 1].

    Attributes:
        length: Steps of the sequence, at least 2.
    """

    length: int = 100

    def batch(self, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Task`."""
        numbers = torch.rand(size, self.length, generator=source)
        half = self.length // 2
        first = torch.randint(half, (size, 1), generator=source)
        second = torch.randint(half, self.length, (size, 1), generator=source)
        marks = torch.zeros_like(numbers).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1, keepdim=True)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(output, target)

    @property
    def baseline(self) -> float:
        """2 · 1/12, the variance of the sum of two uniform numbers."""
        return 2.0 / 12.0
