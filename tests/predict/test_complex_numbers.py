"""Rotary positions by complex numbers, against real draws."""

from __future__ import annotations

import torch
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 64, 2, 12


class Rotary(nn.Module):
    """Attention as in the code that came with the first Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.first.weight, 0, 0.15)
        rates = 10_000.0 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
        angles = torch.arange(TOKENS)[:, None] * rates
        self.turns = torch.polar(torch.ones_like(angles), angles)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns.to(x.device) * 0.5).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).unflatten(-1, (3, HEADS, -1)).transpose(1, 3).unbind(2)
        scores = self.turned(q.contiguous()) @ self.turned(k.contiguous()).mT
        y: Tensor = self.last((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y


def test_rotary() -> None:
    x = torch.randn(8, TOKENS, WIDTH, generator=torch.Generator().manual_seed(5))
    site, excess = worst(disagreement(Rotary, x))
    assert excess < 0.03, site
