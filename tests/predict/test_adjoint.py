"""Sums of gradient times input, in a gated block behind an RMSNorm written as pow, mean, rsqrt and mul."""

from __future__ import annotations

import pytest
import torch
from tests.predict.oracle import disagreement
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Role

TOKENS, CLASSES = 32, 16


class Gated(nn.Module):
    """Llama's block: the norm's output goes into two layers, whose outputs are multiplied."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class GatedByExpert(nn.Module):
    """Mixtral's: each row with a matrix of its group, which makes gate and what is gated side by side."""

    def __init__(self, width: int = 96, experts: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.up = nn.Parameter(torch.empty(experts, 4 * width, width))
        self.down = nn.Parameter(torch.empty(experts, CLASSES, 2 * width))
        nn.init.normal_(self.up, 0, 0.1)
        nn.init.normal_(self.down, 0, 0.02)
        self.rows = torch.arange(2 * TOKENS) % TOKENS  # each token to two experts
        self.ends = torch.tensor([20, TOKENS, 40, 2 * TOKENS], dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flatten(0, 1)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        rows, ends = self.rows.to(x.device), self.ends.to(x.device)
        gate, up = F.grouped_mm(x[rows], self.up.transpose(1, 2), offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        return torch.zeros(len(x), CLASSES, device=x.device).index_add(0, rows, y)


class GatedBySlices(Gated):
    """Phi's block: one layer makes both, and each is a slice of it."""

    def __init__(self, width: int = 96) -> None:
        super().__init__(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.gate = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        gate, up = self.up(x).chunk(2, -1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


@pytest.mark.parametrize("build", [Gated, GatedBySlices, GatedByExpert])
def test_gated(build: type[nn.Module]) -> None:
    x = torch.randn(4, 8, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(TOKENS) % CLASSES
    found = disagreement(
        build,
        x,
        lambda y: F.cross_entropy(y.flatten(0, -2), labels),
        draws=8,
        roles=(Role.ACTIVATION_GRADIENT,),
    )
    small = {
        site: error for site, (error, _) in found.items() if site.split(":")[-1] in ("mean", "pow", "rsqrt")
    }
    assert len(small) == 3
    assert max(map(abs, small.values())) < 0.05, small
