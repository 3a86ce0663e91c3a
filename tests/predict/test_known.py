"""Known entries in segments: by counting, and in a causal attention with rotary embeddings."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from tests.predict.oracle import disagreement
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Role
from evenflow.predict.axes import Axis, plain
from evenflow.predict.known import measured_in


def test_moments_by_segments() -> None:
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = Axis((1, 2, 2)), plain(4)
    found = measured_in(values, ((rows,), (columns,)))
    sums, counts = np.zeros(found.second.shape), np.zeros(found.second.shape)
    segment = np.repeat(np.arange(3), rows.sizes)
    for (i, j), (k, m) in itertools.product(np.ndindex(5, 4), repeat=2):
        row = 9 + segment[i] if i == k else 3 * segment[i] + segment[k]
        at = row, int(j == m)
        sums[at] += float(values[i, j] * values[k, m])
        counts[at] += 1
    real = counts > 0
    np.testing.assert_allclose(found.second[real], sums[real] / counts[real], rtol=1e-12)
    np.testing.assert_allclose(found.means[1, 0], values[1:3].mean())


class Rotary(nn.Module):
    """One layer of causal attention, Su et al. 2021, with the halves of Llama."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int = 64, heads: int = 4, length: int = 24) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, 10)
        frequency = 10000 ** (-torch.arange(0, self.size, 2) / self.size)
        angle = torch.outer(torch.arange(length), torch.cat([frequency, frequency]))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def turned(self, x: Tensor) -> Tensor:
        first, second = x[..., : self.size // 2], x[..., self.size // 2 :]
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], self.heads, self.size)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result


def test_rotary_keys() -> None:
    x = torch.randn(4, 24, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4 * 24) % 10
    found = disagreement(
        Rotary,
        x,
        lambda y: F.cross_entropy(y.flatten(0, 1), labels),
        draws=6,
        roles=(Role.ACTIVATION_GRADIENT,),
    )
    halves = {site: error for site, (error, _) in found.items() if "slice" in site or "neg" in site}
    assert len(halves) == 6
    assert max(map(abs, halves.values())) < 0.06, halves
