"""Comparisons of random numbers, and what is chosen by them, against real draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

WIDTH = 64
CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where number": lambda x: torch.where(x > 0.5, x, 0.0),
    "times": lambda x: x * (x > 0),
    "masked": lambda x: x.masked_fill(x < 0, 0.3),
    "clamp": lambda x: x.clamp(0, 1),
    "two": lambda x: torch.where((x > 0) & ~(x > 1), x, 0.2 * x),
    "either": lambda x: torch.where((x < -1) | (x > 1), x.sign(), x),
    "larger": lambda x: torch.max(x, torch.tensor(0.0, device=x.device)),
    "two numbers": lambda x: torch.where(x[:, :WIDTH] > x[:, WIDTH:], x[:, :WIDTH], x[:, WIDTH:]),
}


class Cut(nn.Module):
    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.cut = nn.Linear(WIDTH, 2 * WIDTH), cut
        self.last = nn.Linear(WIDTH if cut is CUTS["two numbers"] else 2 * WIDTH, 16)
        nn.init.normal_(self.first.weight, 0, 0.15)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.cut(self.first(x)))
        return y


@pytest.mark.parametrize("name", CUTS)
def test_choices_by_random_numbers(name: str) -> None:
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(5))
    site, excess = worst(disagreement(lambda: Cut(CUTS[name]), x, draws=16), sigmas=3)
    assert excess < 0.02, site
