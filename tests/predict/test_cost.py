"""What a prediction does grows with the depth, not with its square."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor, nn

from evenflow.predict import Described, fields, predict


class Block(nn.Module):
    """x + W₂ SiLU(W₁ x/rms(x)), the norm written out as transformers does it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        branch: Tensor = self.down(nn.functional.silu(self.up(x * scale)))
        return x + branch


def pairs(layers: int) -> int:
    """Pairs of fields whose covariance is worked out."""
    with mock.patch.object(fields, "_cross", side_effect=fields._cross) as asked:
        predict(lambda: nn.Sequential(*(Block(64) for _ in range(layers))), Described((2, 8, 64)))
    return asked.call_count


def test_covariances_of_a_residual_stream() -> None:
    """Each layer adds as many as the one before, though the stream is a sum over all of them."""
    few, some, many = map(pairs, (4, 8, 12))
    assert few > 0
    assert many - some == some - few
