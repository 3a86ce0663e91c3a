"""Healthy programs that predict numbers, and embeddings of which a step sees few rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.diagnosis.recipe import (
    Pair,
    Recipe,
    accuracy,
    adam,
    cross_entropy,
    r2,
    sgd,
    source,
    teacher,
)
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import DeepNet

numbers = teacher(12, 1)


def regression(name: str, build: Any, optimizer: Any, threshold: float = 0.8, **more: Any) -> Recipe:
    more = {"data": numbers, "loss": F.mse_loss, "metric": r2, "kind": "mlp", "steps": 500, **more}
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def net(outputs: int = 1, act: str = "relu", inputs: int = 12, depth: int = 3) -> Any:
    return lambda: DeepNet(inputs=inputs, width=64, depth=depth, outputs=outputs, act=act)


def _quantiles(output: Tensor, target: Tensor) -> Tensor:
    """Pinball loss of the 10, 50 and 90 % quantiles."""
    levels = torch.tensor([0.1, 0.5, 0.9])
    error = target - output
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def _gaussian(output: Tensor, target: Tensor) -> Tensor:
    mean, log_variance = output.chunk(2, -1)
    return F.gaussian_nll_loss(mean, target, log_variance.exp())


def _linear(size: int, generator: torch.Generator) -> Pair:
    x = torch.randn(size, 6, generator=generator)
    return x, x @ torch.arange(1.0, 7.0)[:, None] + 3


def _counts(size: int, generator: torch.Generator) -> Pair:
    """Poisson counts whose rate depends on the inputs."""
    x = torch.randn(size, 4, generator=generator)
    return x, torch.poisson((0.5 * x.sum(1, keepdim=True)).clamp(max=3).exp(), generator=generator)


def _waves(size: int, generator: torch.Generator) -> Pair:
    x = 2 * torch.rand(size, 1, generator=generator) - 1
    return x, (12 * x).sin()


class Sine(nn.Module):
    """Sin(30 W x) with the first layer U(±1/n) and the others U(±√(6/n)/30) (Sitzmann et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False) -> None:
        super().__init__()
        self.linear, self.rate = nn.Linear(inputs, outputs), 10.0 if first else 30.0
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.rate * self.linear(x)).sin()
        return out


class Fourier(nn.Module):
    """Sines and cosines of the input, of fixed random rates."""

    def __init__(self, count: int = 16) -> None:
        super().__init__()
        self.rates: Tensor
        self.register_buffer("rates", 8 * torch.randn(1, count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x @ self.rates).sin(), (x @ self.rates).cos()], -1)


class Set(nn.Module):
    """A sum over members that are each looked at alone (Zaheer et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32))
        self.all = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.all(self.each(x).mean(1))
        return out


def _sets(size: int, generator: torch.Generator) -> Pair:
    x = torch.randn(size, 10, 4, generator=generator)
    return x, 3 * (x[..., :1].abs() + x[..., 1:2] * x[..., 2:3]).mean(1)


class Factors(nn.Module):
    """Users and items as vectors; sparse rows of gradient."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(400, 8, sparse=sparse) for _ in range(2))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        out: Tensor = (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(-1, keepdim=True)
        return out


def _ratings(size: int, generator: torch.Generator) -> Pair:
    draw = source(5)
    users, items = torch.randn(400, 4, generator=draw), torch.randn(400, 4, generator=draw)
    pairs = torch.randint(400, (size, 2), generator=generator)
    return pairs, 0.5 * (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(-1, keepdim=True)


class Bag(nn.Module):
    """The mean of word vectors, and a linear layer: fastText. Most rows are never seen in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(5000, 16), nn.Linear(16, 4)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.words(words))
        return out


def _texts(size: int, generator: torch.Generator) -> Pair:
    """Ten words of a topic; low numbers are frequent."""
    topic = torch.randint(4, (size,), generator=generator)
    word = (1250 * torch.rand(size, 10, generator=generator) ** 3).long()
    return word * 4 + topic[:, None], topic


def recipes() -> list[Recipe]:
    def middle(output: Tensor, target: Tensor) -> float:
        return r2(output[:, 1:2], target)

    def mean(output: Tensor, target: Tensor) -> float:
        return r2(output.chunk(2, -1)[0], target)

    def rate(output: Tensor, target: Tensor) -> float:
        return r2(output.exp(), target)

    sparse = lambda m: torch.optim.SparseAdam(m.parameters(), 0.03)  # noqa: E731
    siren = lambda: nn.Sequential(Sine(1, 32, first=True), Sine(32, 32), nn.Linear(32, 1))  # noqa: E731
    return [
        regression("regression-adam", net(), adam(3e-3)),
        regression("regression-tanh-sgd", net(act="tanh"), sgd(0.1, 0.9)),
        regression("regression-huber", net(), adam(3e-3), loss=F.huber_loss),
        regression("regression-mae", net(), adam(3e-3), loss=F.l1_loss),
        regression("quantiles", net(3), adam(3e-3), loss=_quantiles, metric=middle),
        regression("gaussian-likelihood", net(2), adam(3e-3), loss=_gaussian, metric=mean, clip=5.0),
        regression("linear-sgd", lambda: nn.Linear(6, 1), sgd(0.05), data=_linear, threshold=0.99),
        regression(
            "poisson",
            net(inputs=4),
            adam(3e-3),
            data=_counts,
            loss=F.poisson_nll_loss,
            metric=rate,
            threshold=0.3,
        ),
        regression("siren", siren, adam(1e-3), data=_waves, threshold=0.9),
        regression(
            "fourier-features",
            lambda: nn.Sequential(Fourier(), net(inputs=32)()),
            adam(2e-3),
            data=_waves,
            threshold=0.9,
        ),
        regression("deep-set", Set, adam(3e-3), data=_sets, threshold=0.7, kind="set"),
        regression(
            "factors-dense",
            lambda: Factors(sparse=False),
            adam(0.03),
            data=_ratings,
            batch=512,
            threshold=0.5,
            steps=600,
            kind="embedding",
        ),
        regression(
            "factors-sparse",
            lambda: Factors(sparse=True),
            sparse,
            data=_ratings,
            batch=512,
            threshold=0.5,
            steps=600,
            kind="embedding",
        ),
        regression(
            "bag-of-words",
            Bag,
            adam(0.02),
            0.85,
            data=_texts,
            loss=cross_entropy,
            metric=accuracy,
            kind="embedding",
            steps=300,
        ),
    ]
