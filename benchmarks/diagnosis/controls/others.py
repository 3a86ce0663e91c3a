"""Healthy programs of other kinds: regression, embeddings, autoencoders, fine-tuning and more."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.diagnosis.controls.dense import zero_head
from benchmarks.diagnosis.recipe import (
    Recipe,
    Source,
    accuracy,
    adam,
    cross_entropy,
    mapped,
    r2,
    sgd,
    source,
    task,
    teacher,
)
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import DeepNet
from evenflow.lab.tasks import Digits

Pair = tuple[Tensor, Tensor]
numbers = teacher(12, 1)
scaled = mapped(task(Digits()), lambda x: (x - x.min()) / (x.max() - x.min()))
"""Digits with pixels in [0, 1]."""


def regression(name: str, build: Any, optimizer: Any, threshold: float = 0.8, **more: Any) -> Recipe:
    more = {"data": numbers, "loss": F.mse_loss, "metric": r2, "kind": "mlp", "steps": 500, **more}
    return Recipe(name=name, build=build, optimizer=optimizer, threshold=threshold, **more)


def net(outputs: int = 1, act: str = "relu", inputs: int = 12, depth: int = 3) -> Any:
    return lambda: DeepNet(inputs=inputs, width=64, depth=depth, outputs=outputs, act=act)


def repeated(data: Source) -> Source:
    """Inputs that are their own targets."""
    return lambda size, generator: (x := data(size, generator)[0], x)


# --- regression --------------------------------------------------------------------------


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


# --- embeddings ----------------------------------------------------------------------------


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


# --- autoencoders and flows ----------------------------------------------------------------


def autoencoder(middle: int = 16, last: nn.Module | None = None) -> Any:
    def build() -> nn.Module:
        layers = [nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, middle), nn.ReLU(), nn.Linear(middle, 48)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(48, 64), *([last] if last is not None else []))

    return build


class Variational(nn.Module):
    """A VAE: the answer is (reconstruction logits, mean, log variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, 6), nn.Linear(64, 6)
        self.decode = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        noise = torch.randn_like(mean) if self.training else 0.0
        return self.decode(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def _bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """The negative evidence lower bound."""
    said, mean, log_variance = output
    rebuilt = F.binary_cross_entropy_with_logits(said, target, reduction="sum")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (rebuilt + divergence) / len(target)


class Coupling(nn.Module):
    """RealNVP on the plane: each half is scaled and shifted by the other; every net starts at zero."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(layers)
        )
        for one in self.nets:
            with torch.no_grad():
                zero_head(one)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        a, b = x.chunk(2, -1)
        for one in self.nets:
            log_scale, shift = one(a).chunk(2, -1)
            log_scale = log_scale.tanh()
            a, b = b * log_scale.exp() + shift, a
            total = total + log_scale.squeeze(-1)
        return torch.cat([a, b], -1), total


def _likelihood(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    z, log_determinant = output
    return (0.5 * z.square().sum(-1) + math.log(math.tau) - log_determinant).mean()


def _banana(size: int, generator: torch.Generator) -> Pair:
    x = torch.randn(size, 2, generator=generator)
    bent = torch.stack([x[:, 0], 0.3 * x[:, 1] + x[:, 0] ** 2 - 1], 1)
    return bent, bent


class Denoiser(nn.Module):
    """Says what noise was added, from the noised point and how much; its head starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(66, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.head = nn.Linear(128, 64)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def _noised(size: int, generator: torch.Generator) -> Pair:
    x, _ = Digits().batch(size, generator)
    noise, time = torch.randn(x.shape, generator=generator), torch.rand(size, 1, generator=generator)
    mixed = (0.5 * math.pi * time).cos() * x + (0.5 * math.pi * time).sin() * noise
    return torch.cat([mixed, (6 * time).sin(), (6 * time).cos()], 1), noise


# --- parts that stay as they are -------------------------------------------------------------


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


def recipes() -> list[Recipe]:
    def middle(output: Tensor, target: Tensor) -> float:
        return r2(output[:, 1:2], target)

    def mean(output: Tensor, target: Tensor) -> float:
        return r2(output.chunk(2, -1)[0], target)

    def rate(output: Tensor, target: Tensor) -> float:
        return r2(output.exp(), target)

    def nats(output: tuple[Tensor, Tensor], target: Tensor) -> float:
        return -float(_likelihood(output, target))

    def rebuilt(output: Any, target: Tensor) -> float:
        said = output[0] if isinstance(output, tuple) else output
        return r2(said.sigmoid(), target)

    images = {"data": repeated(task(Digits())), "kind": "autoencoder", "steps": 400}
    unit = {"data": repeated(scaled), "kind": "autoencoder", "steps": 500}
    classes = {"data": task(Digits()), "loss": cross_entropy, "metric": accuracy}
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
        regression("autoencoder", autoencoder(), adam(3e-3), 0.6, **images),
        regression(
            "autoencoder-noise",
            autoencoder(),
            adam(3e-3),
            0.6,
            **{
                **images,
                "data": lambda n, g: (
                    (x := Digits().batch(n, g)[0]) + 0.3 * torch.randn(x.shape, generator=g),
                    x,
                ),
            },
        ),
        regression(
            "autoencoder-sigmoid",
            autoencoder(last=nn.Sigmoid()),
            adam(3e-3),
            0.5,
            loss=F.binary_cross_entropy,
            **unit,
        ),
        regression("variational", Variational, adam(3e-3), 0.4, loss=_bound, metric=rebuilt, **unit),
        regression(
            "flow-coupling",
            Coupling,
            adam(3e-3),
            -2.4,
            data=_banana,
            loss=_likelihood,
            metric=nats,
            kind="flow",
        ),
        regression(
            "denoiser-zero-head", Denoiser, adam(2e-3), 0.5, data=_noised, kind="diffusion", batch=128
        ),
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


def _below_five(size: int, generator: torch.Generator) -> Pair:
    x, y = Digits().batch(4 * size, generator)
    keep = (y < 5).nonzero().squeeze(1)[:size]
    return x[keep], y[keep]
