"""Attention under several masks in one batch, as shifted windows and padded samples have them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.predict.oracle import disagreement
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.predict.rules.masks import distinct_masks

WIDTH, TOKENS = 96, 16


def windows(batch: int) -> Tensor:
    """Which keys a query sees: all; those of its half; those of its quarter. One after the other."""
    place = torch.arange(TOKENS)
    masks = [place[:, None] // size == place // size for size in (TOKENS, TOKENS // 2, TOKENS // 4)]
    return torch.stack([masks[i % 3] for i in range(batch)])[:, None]


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), TOKENS, 4, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        p = (scores + torch.where(windows(len(x)), 0.0, -100.0)).softmax(-1)
        y: Tensor = self.out((p @ v).transpose(1, 2).flatten(2))
        return y


def test_windows_of_different_masks() -> None:
    x = torch.randn(12, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (12 * TOKENS,), generator=torch.Generator().manual_seed(1))
    found = disagreement(
        Windows,
        x,
        lambda y: F.cross_entropy(y.flatten(0, 1), labels),
        draws=6,
        roles=(Role.ACTIVATION, Role.ACTIVATION_GRADIENT, Role.PARAMETER_GRADIENT),
    )
    for site in ("activation::_softmax", "activation::bmm[1]"):
        assert abs(found[site][0]) < 0.02, (site, found[site])
    for site in ("q:addmm", "k:addmm", "v:addmm", ":_softmax", ":bmm", ":bmm[1]"):
        assert abs(found[f"activation_gradient:{site}"][0]) < 0.05, (site, found)
    assert found["parameter_gradient:k.bias"][0] == 0.0  # rows of a softmax cotangent add up to zero


def test_masks_told_apart() -> None:
    parts = distinct_masks(windows(6).expand(6, 4, TOKENS, TOKENS))
    assert sorted(share for share, _ in parts) == pytest.approx([1 / 3] * 3)
    many = torch.ones(20, TOKENS, TOKENS, dtype=torch.bool).tril()
    for i, each in enumerate(many):
        each[i // 2, : i % 2] = False
    assert len(distinct_masks(many)) == 1
