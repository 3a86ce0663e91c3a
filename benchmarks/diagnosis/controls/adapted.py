"""Healthy programs of which a part stays as it is, or that compare: fine-tuning, adapters, a graph."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.diagnosis.controls.numbers import regression
from benchmarks.diagnosis.recipe import (
    Pair,
    Recipe,
    accuracy,
    adam,
    cross_entropy,
    source,
    task,
)
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.tasks import Digits


def pretrained() -> nn.Module:
    """A net that knows the digits below five: trained here, in a moment."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer, draw = torch.optim.Adam(model.parameters(), 2e-3), source(12)
        for _ in range(300):
            x, y = Digits().batch(64, draw)
            optimizer.zero_grad()
            cross_entropy(model(x)[y < 5], y[y < 5]).backward()
            optimizer.step()
    return model


def with_new_head(*, frozen: bool) -> Any:
    def build() -> nn.Module:
        model = pretrained()
        assert isinstance(model, nn.Sequential)
        model.requires_grad_(not frozen)
        model[4] = nn.Linear(64, 10)
        return model

    return build


class LowRank(nn.Module):
    """A frozen linear layer plus B A x with B = 0 (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


def adapted() -> nn.Module:
    model = pretrained()
    assert isinstance(model, nn.Sequential)
    for i in (0, 2, 4):
        layer = model[i]
        assert isinstance(layer, nn.Linear)
        model[i] = LowRank(layer)
    return model


def only_trainable(lr: float) -> Any:
    return lambda model: torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)


class Graph(nn.Module):
    """Two graph convolutions with a fixed adjacency; the batch is the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = adjacency @ self.second((adjacency @ self.first(x)).relu())
        return out


def _communities(size: int, generator: torch.Generator) -> tuple[Any, Tensor]:
    draw = source(9)
    y = torch.arange(120) % 4
    edge = (torch.rand(120, 120, generator=draw) < torch.where(y[:, None] == y, 0.15, 0.02)).float().triu(1)
    a = edge + edge.T + torch.eye(120)
    scale = a.sum(1).rsqrt()
    features = F.one_hot(y, 16).float() + torch.randn(120, 16, generator=draw)
    return (features, scale[:, None] * a * scale), y


def _contrast(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Each view should find its partner among the batch, at temperature .1."""
    scores = output[0] @ output[1].T / 0.1
    which = torch.arange(len(scores))
    return 0.5 * (F.cross_entropy(scores, which) + F.cross_entropy(scores.T, which))


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.body(a), dim=-1), F.normalize(self.body(b), dim=-1)


def _views(size: int, generator: torch.Generator) -> tuple[Any, Tensor]:
    x, y = Digits().batch(size, generator)
    a, b = (x + 0.5 * torch.randn(x.shape, generator=generator) for _ in range(2))
    return (a, b), y


def _partner(output: tuple[Tensor, Tensor], target: Tensor) -> float:
    a, b = (part[:64] for part in output)
    return float(((a @ b.T).argmax(1) == torch.arange(64)).float().mean())


def _below_five(size: int, generator: torch.Generator) -> Pair:
    x, y = Digits().batch(4 * size, generator)
    keep = (y < 5).nonzero().squeeze(1)[:size]
    return x[keep], y[keep]


def recipes() -> list[Recipe]:
    classes = {"data": task(Digits()), "loss": cross_entropy, "metric": accuracy}
    return [
        regression("frozen-backbone", with_new_head(frozen=True), only_trainable(1e-2), 0.85, **classes),
        regression("fine-tune-all", with_new_head(frozen=False), adam(1e-3), 0.9, **classes),
        regression(
            "fine-tune-gently", pretrained, adam(2e-5), 0.6, **{**classes, "data": _below_five, "steps": 200}
        ),
        regression("low-rank", adapted, only_trainable(1e-2), 0.85, **classes),
        regression(
            "graph-2",
            Graph,
            adam(1e-2, weight_decay=5e-4),
            0.8,
            data=_communities,
            loss=cross_entropy,
            metric=accuracy,
            kind="graph",
            steps=200,
        ),
        regression("contrastive", Views, adam(2e-3), 0.8, data=_views, loss=_contrast, metric=_partner),
    ]
