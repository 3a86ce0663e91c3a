"""Sums of gradient times input, in a gated block behind an RMSNorm written as pow, mean, rsqrt and mul."""

from __future__ import annotations

import torch
from tests.predict.oracle import disagreement
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Role


class Gated(nn.Module):
    """Llama's block: the norm's output goes into two layers, whose outputs are multiplied."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


def test_gated() -> None:
    x = torch.randn(4, 8, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 10
    found = disagreement(
        Gated,
        x,
        lambda y: F.cross_entropy(y.flatten(0, 1), labels),
        draws=8,
        roles=(Role.ACTIVATION_GRADIENT,),
    )
    small = {
        site: error for site, (error, _) in found.items() if site.split(":")[-1] in ("mean", "pow", "rsqrt")
    }
    assert len(small) == 3
    assert max(map(abs, small.values())) < 0.05, small
