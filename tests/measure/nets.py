"""Small healthy networks for tests, each with a batch and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Program = tuple[nn.Module, Tensor, Callable[[Any], Tensor]]


def _target(classes: int, size: int) -> Tensor:
    return torch.arange(size) % classes


def mlp(depth: int = 8, width: int = 32, activation: Callable[[], nn.Module] = nn.Tanh) -> Program:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    target = _target(5, 16)
    return (
        nn.Sequential(*layers, nn.Linear(width, 5)),
        torch.randn(16, width),
        lambda out: F.cross_entropy(out, target),
    )


def cnn() -> Program:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    target = _target(5, 8)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return model, torch.randn(8, 3, 8, 8), lambda out: F.cross_entropy(out, target)


class Block(nn.Module):
    """A pre-LN transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first_norm(x)).unsqueeze(1).chunk(3, dim=-1)  # one head
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        return x + self.down(F.gelu(self.up(self.second_norm(x))))


class Transformer(nn.Module):
    """A pre-LN decoder over tokens."""

    def __init__(self, vocabulary: int = 11, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def transformer() -> Program:
    torch.manual_seed(0)
    tokens = torch.randint(11, (4, 7))
    return Transformer(), tokens, lambda out: F.cross_entropy(out.flatten(0, 1), tokens.flatten())


NETS: dict[str, Callable[[], Program]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
