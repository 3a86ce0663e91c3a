"""Healthy programs that model their data: autoencoders, a flow, a denoiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.diagnosis.controls.dense import zero_head
from benchmarks.diagnosis.controls.numbers import regression
from benchmarks.diagnosis.recipe import (
    Pair,
    Recipe,
    Source,
    adam,
    mapped,
    r2,
    task,
)
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.tasks import Digits

scaled = mapped(task(Digits()), lambda x: (x - x.min()) / (x.max() - x.min()))
"""Digits with pixels in [0, 1]."""


def repeated(data: Source) -> Source:
    """Inputs that are their own targets."""
    return lambda size, generator: (x := data(size, generator)[0], x)


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


def recipes() -> list[Recipe]:
    def nats(output: tuple[Tensor, Tensor], target: Tensor) -> float:
        return -float(_likelihood(output, target))

    def rebuilt(output: Any, target: Tensor) -> float:
        said = output[0] if isinstance(output, tuple) else output
        return r2(said.sigmoid(), target)

    images = {"data": repeated(task(Digits())), "kind": "autoencoder", "steps": 400}
    unit = {"data": repeated(scaled), "kind": "autoencoder", "steps": 500}
    return [
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
    ]
