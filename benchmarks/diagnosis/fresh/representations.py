"""Embeddings: pairs, contrasts, factorised tables, fine-tuned features."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import (
    Split,
    cross_entropy,
    digits,
    evaluated,
    integers,
    noise,
    r2,
    split,
    supervised,
)
from benchmarks.diagnosis.recipe import adam, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


class Towers(nn.Module):
    """One network for both of a pair."""

    def __init__(self, width: int = 16, unit: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, width))
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return F.normalize(z, dim=-1) if self.unit else z


def neighbour(data: Split, model: nn.Module) -> float:
    """Accuracy of the nearest training image's class, by embeddings."""

    def value() -> float:
        known, asked = model(data.x[:600]), model(data.test_x)
        if not bool(torch.isfinite(known).all() and torch.isfinite(asked).all()):
            return -1.0
        nearest = torch.cdist(asked, known).argmin(1)
        return float((data.y[:600][nearest] == data.test_y).float().mean())

    return evaluated(model, value)


@faulty(
    "contrastive",
    source="https://github.com/marialeyvallina/generalized_contrastive_loss/issues/5",
    fix="a small number under the square root",
    symptoms=("non_finite",),
    causes=("unknown", "wrong_loss_or_output"),
)
def root_of_zero(fixed: bool) -> Program:
    """The square root of a squared distance, which is zero for a sample paired with itself."""
    data = digits()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        squared = (z[:, None] - z[None]).square().sum(-1)
        distance = torch.sqrt(squared + (1e-6 if fixed else 0.0))
        same = (y[:, None] == y[None]).float()
        return (same * squared + (1 - same) * F.relu(2 - distance).square()).mean()

    return supervised(Towers, data, loss, adam(1e-3), 150, judge=lambda model: neighbour(data, model))


@cache
def ratings() -> Split:
    """Ratings of 100 films by 150 people, from four hidden traits each."""
    pairs = torch.stack([integers(150, 6000, seed=71), integers(100, 6000, seed=72)], 1)
    people, films = noise(150, 4, seed=73), noise(100, 4, seed=74)
    y = (people[pairs[:, 0]] * films[pairs[:, 1]]).sum(1) / 2 + 0.1 * noise(6000, seed=75)
    return split(pairs, y)


class Factors(nn.Module):
    """The scalar product of two embeddings."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.people, self.films = nn.Embedding(150, width), nn.Embedding(100, width)
        for table in (self.people, self.films):
            nn.init.normal_(table.weight, std=std)

    def forward(self, pairs: Tensor) -> Tensor:
        out: Tensor = (self.people(pairs[:, 0]) * self.films(pairs[:, 1])).sum(1)
        return out


@faulty(
    "embedding",
    source="modelled on factorisation code whose embeddings start at zero",
    fix="embeddings of deviation .3",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("zero_init_symmetry", "init_too_small"),
    places=("people", "films"),
)
def factors_from_zero(fixed: bool) -> Program:
    """Both embeddings start at zero, so that neither gets a gradient."""
    return supervised(
        lambda: Factors(8, 0.3 if fixed else 0.0), ratings(), F.mse_loss, adam(1e-2), 300, metric=r2
    )


@faulty(
    "embedding",
    source="modelled on factorisation code that keeps nn.Embedding's N(0, 1) in 128 dimensions",
    fix="embeddings of deviation .1",
    symptoms=("loss_not_decreasing",),
    causes=("init_too_large",),
    places=("people", "films"),
)
def loud_factors(fixed: bool) -> Program:
    """Products of 128 dimensions of N(0, 1) spread over ten times the range of the ratings."""
    return supervised(
        lambda: Factors(128, 0.1 if fixed else 1.0), ratings(), F.mse_loss, adam(3e-3), 300, metric=r2
    )


@cache
def pretrained() -> dict[str, Tensor]:
    """Weights of a body that has learned to tell digits below 5 apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tuned()
        data = digits()
        low = data.y < 5
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(150):
            loss = F.cross_entropy(model(data.x[low]), data.y[low])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in model.body.state_dict().items()}


class Tuned(nn.Module):
    """A body, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def high_digits() -> Split:
    """Digits of 5 and more."""
    data = digits()
    high, test = data.y >= 5, data.test_y >= 5
    return Split(data.x[high], data.y[high] - 5, data.test_x[test], data.test_y[test] - 5)


def tuned(freeze: bool) -> Tuned:
    """The pretrained body under a new head."""
    model = Tuned()
    model.body.load_state_dict(pretrained())
    if freeze:
        model.body.requires_grad_(False)
    return model


@faulty(
    "finetuning",
    source="https://github.com/microsoft/nni/issues/4521",
    fix="the optimizer is made after the head was replaced",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("head",),
)
def head_after_optimizer(fixed: bool) -> Program:
    """The head is replaced after the optimizer was made; the body is frozen, and nothing learns."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, Tuned)
        stale = nn.Linear(64, 5)
        return torch.optim.Adam((model.head if fixed else stale).parameters(), 3e-3)

    return supervised(lambda: tuned(freeze=True), high_digits(), cross_entropy, optimizer, 200)


@faulty(
    "finetuning",
    source="modelled on fine-tuning with the rate that the body was pretrained with by SGD",
    fix="rate of .02",
    symptoms=("loss_not_decreasing", "dead_units", "vanishing_gradient"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def forgotten(fixed: bool) -> Program:
    """A pretrained body and a new head with SGD at 1.5 and momentum: all is forgotten in ten steps."""
    return supervised(
        lambda: tuned(freeze=False), high_digits(), cross_entropy, sgd(0.02 if fixed else 1.5, 0.9), 150
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("finetuning", 0.7, source="own: a linear probe; the body is frozen on purpose")
def linear_probe() -> Program:
    """Body frozen, head trained, and the optimizer has the head only."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)

    return supervised(lambda: tuned(freeze=True), high_digits(), cross_entropy, optimizer, 800)


@healthy("contrastive", 0.9, source="van den Oord et al. 2018: the loss stays near a floor of its own")
def two_views() -> Program:
    """InfoNCE of two noisy views at a temperature of .1: logits of ten and more."""
    data = digits()

    def loss(model: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        x = pair[0]
        one, other = (model(x + 0.2 * torch.randn_like(x)) for _ in range(2))
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(x)))

    return Program(
        build=lambda seed: Towers(unit=True),
        optimizer=adam(1e-3),
        batches=data.batches(128),
        loss=loss,
        steps=250,
        metric=lambda model: neighbour(data, model),
    )


@healthy("embedding", 0.9, source="own: factors of a table, which are flat saddles at first")
def quiet_factors() -> Program:
    """Small embeddings: a plateau at the start, since each gets its gradient from the other."""
    return supervised(lambda: Factors(8, 0.05), ratings(), F.mse_loss, adam(1e-2), 500, metric=r2)
