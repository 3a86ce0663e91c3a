"""Lengths of vectors and normalised weights, against real draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WIDTH = 96
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised": lambda x: F.normalize(x, dim=-1),
    "two": lambda x: x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1),
    "one": lambda x: x / x.abs().sum(-1, keepdim=True) + x / torch.linalg.vector_norm(x, 1, -1, keepdim=True),
    "norm": lambda x: x * x.norm(dim=-1)[:, None],
}


class Lengths(nn.Module):
    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.of, self.last = nn.Linear(WIDTH, WIDTH), of, nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.of(self.first(x)))
        return y


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths(name: str) -> None:
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(5))
    site, excess = worst(disagreement(lambda: Lengths(LENGTHS[name]), x, draws=16), sigmas=3)
    assert excess < 0.03, site


@pytest.mark.parametrize("dim", [0, 2])
def test_weights_as_length_times_direction(dim: int) -> None:
    """Along channels, as is the default, and along taps, as Wav2Vec2 has it."""

    def build() -> nn.Module:
        layers = [nn.Conv1d(32, 32, 3, padding=1) for _ in range(2)]
        for layer in layers:
            weight_norm(layer, dim=dim)
        return nn.Sequential(layers[0], nn.GELU(), layers[1])

    x = torch.randn(8, 32, 12, generator=torch.Generator().manual_seed(5))
    site, excess = worst(disagreement(build, x, draws=16), sigmas=3)
    assert excess < 0.03, site
