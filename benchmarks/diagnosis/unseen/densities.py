"""Densities: normalising flows, mixtures, denoising diffusion, adversarial images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sklearn.datasets
import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    digits,
    evaluated,
    integers,
    noise,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def moons(unit: float = 1.0, offset: float = 0.0) -> Split:
    """Two half moons; ``unit`` and ``offset`` say in what they are measured."""
    x, _ = sklearn.datasets.make_moons(1600, noise=0.06, random_state=3)
    points = torch.tensor(x, dtype=torch.float32) * unit + offset
    return split(points, torch.zeros(1600))


def gaussian(data: Split) -> float:
    """Mean log density of the test points under the normal density that fits the training points."""
    fit = torch.distributions.MultivariateNormal(data.x.mean(0), torch.cov(data.x.T))
    return float(fit.log_prob(data.test_x).mean())


class Coupling(nn.Module):
    """Scales and moves one half of the coordinates by what a small net makes of the other."""

    def __init__(self, flip: bool, bound: float | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        self.flip, self.bound = flip, bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keep, move = (x[:, 1:], x[:, :1]) if self.flip else (x[:, :1], x[:, 1:])
        log_scale, shift = self.net(keep).chunk(2, 1)
        if self.bound is not None:
            log_scale = self.bound * torch.tanh(log_scale / self.bound)
        move = move * log_scale.exp() + shift
        return torch.cat([move, keep] if self.flip else [keep, move], 1), log_scale[:, 0]


class Flow(nn.Module):
    """Real NVP: from points to their log densities."""

    def __init__(self, layers: int, bound: float | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Coupling(i % 2 == 1, bound) for i in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        volume = torch.zeros(len(x))
        for layer in self.layers:
            x, more = layer(x)
            volume = volume + more
        return -0.5 * x.square().sum(1) - math.log(2 * math.pi) + volume


def flow(data: Split, bound: float | None, optimizer: Any, steps: int, layers: int = 6) -> Program:
    """Maximum likelihood; the metric is what is gained over a normal density, in nats."""
    reference = gaussian(data)
    return supervised(
        lambda: Flow(layers, bound),
        data,
        lambda out, y: -out.mean(),
        optimizer,
        steps,
        batch=128,
        metric=lambda out, y: max(-1.0, float(out.mean()) - reference),
    )


@faulty(
    "flow",
    source="https://github.com/paultsw/nice_pytorch/issues/2 (exp grows with what it is given)",
    fix="inputs standardised",
    symptoms=("exploding_gradient", "non_finite", "loss_not_decreasing"),
    causes=("unscaled_input",),
)
def flow_on_millimetres(fixed: bool) -> Program:
    """Coordinates of some hundreds, into a density that expects about 1."""
    data = moons(180.0, 400.0)
    return flow(data.standardised() if fixed else data, 2.0, adam(1e-3), 350)


@faulty(
    "flow",
    source="https://github.com/VincentStimper/normalizing-flows/issues/73, "
    "https://github.com/pyro-ppl/pyro/issues/2998",
    fix="a rate of 2e-3 in place of 1e-1",
    symptoms=("non_finite", "exploding_gradient", "loss_not_decreasing"),
    causes=("learning_rate_too_high",),
)
def flow_in_a_hurry(fixed: bool) -> Program:
    """Ten couplings whose scale is a free exponential, and a rate that suits none of them."""
    return flow(moons().standardised(), None, adam(2e-3 if fixed else 1e-1), 350, layers=10)


# --- mixtures ---------------------------------------------------------------------------


def bent(scale: float) -> Split:
    """The inverse of y + .3 sin: several answers to one question."""
    y = uniform(1200, 1, seed=41)
    x = y + 0.3 * torch.sin(2 * math.pi * y) + 0.05 * noise(1200, 1, seed=42)
    return split(2 * x - 1, scale * (2 * y - 1))


class Mixture(nn.Module):
    """Weights, means and log deviations of five normal densities, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 15))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def log_likelihood(out: Tensor, y: Tensor) -> Tensor:
    """In logarithms throughout."""
    weight, mean, log_std = out.chunk(3, 1)
    each = -0.5 * ((y - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(F.log_softmax(weight, 1) + each, 1)


def mixture(data: Split, loss: Callable[[Tensor, Tensor], Tensor], optimizer: Any) -> Program:
    """The metric is what is gained over one normal density, in nats."""
    reference = float(torch.distributions.Normal(data.y.mean(), data.y.std()).log_prob(data.test_y).mean())
    return supervised(
        Mixture,
        data,
        loss,
        optimizer,
        600,
        metric=lambda out, y: max(-1.0, float(log_likelihood(out, y).mean()) - reference),
    )


@faulty(
    "mixture",
    source="https://github.com/keras-team/keras/issues/1061 (a mixture density network turns inf, then NaN)",
    fix="logsumexp of logarithms, targets standardised",
    symptoms=("non_finite",),
    causes=("wrong_loss_or_output", "unscaled_target", "precision_underflow"),
)
def mixture_of_densities(fixed: bool) -> Program:
    """The log of a sum of densities: far from all means each of them is 0."""

    def plain(out: Tensor, y: Tensor) -> Tensor:
        weight, mean, log_std = out.chunk(3, 1)
        std = log_std.exp()
        each = torch.exp(-0.5 * ((y - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        return -(F.softmax(weight, 1) * each).sum(1).log().mean()

    if fixed:
        return mixture(bent(1.0), lambda out, y: -log_likelihood(out, y).mean(), adam(5e-3))
    return mixture(bent(40.0), plain, adam(5e-3))


# --- diffusion --------------------------------------------------------------------------

STEPS = 40


def levels() -> Tensor:
    """Share of the signal left after each step (cosine schedule)."""
    t = torch.linspace(0, 1, STEPS + 1)[1:]
    return torch.cos(0.5 * math.pi * t * 0.98).square()


class Denoiser(nn.Module):
    """From a noisy point and its step to the noise."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.step = nn.Embedding(STEPS, width)
        self.first = nn.Linear(dim, width)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.last = nn.Linear(width, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(self.first(x) + self.step(t)))
        return out


def diffusion(points: Tensor, test: Tensor, optimizer: Any, steps: int, width: int = 96) -> Program:
    """Predict the noise; the metric is how much of it is, on test points."""
    left = levels()

    def error(model: nn.Module, x: Tensor, t: Tensor, e: Tensor) -> Tensor:
        share = left[t, None]
        return F.mse_loss(model(share.sqrt() * x + (1 - share).sqrt() * e, t), e)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return error(model, x, torch.randint(0, STEPS, (len(x),)), torch.randn_like(x))

    def metric(model: nn.Module) -> float:
        x = test.repeat(4, 1)
        t, e = integers(STEPS, len(x), seed=5), noise(*x.shape, seed=6)
        return evaluated(model, lambda: max(-1.0, 1 - float(error(model, x, t, e))))

    def batches(seed: int) -> list[Tensor]:
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
        return [points[i] for i in order.split(128) if len(i) == 128]

    return Program(
        build=lambda seed: Denoiser(points.shape[1], width),
        optimizer=optimizer,
        batches=batches,
        loss=loss,
        steps=steps,
        metric=metric,
    )


@faulty(
    "diffusion",
    source="https://github.com/beresandras/clear-diffusion-keras/issues/4 (only noise comes out), "
    "modelled on trainings on pixels that nobody had scaled",
    fix="pixels from −1 to 1",
    symptoms=("exploding_gradient", "loss_not_decreasing", "oscillating"),
    causes=("unscaled_input",),
)
def diffusion_of_bytes(fixed: bool) -> Program:
    """Brightness from 0 to 255, with noise of deviation 1 on it."""
    data = digits()
    points, test = (2 * data.x - 1, 2 * data.test_x - 1) if fixed else (255 * data.x, 255 * data.test_x)
    return diffusion(points, test, adam(2e-3), 900, width=160)


def roll() -> Split:
    """A flat Swiss roll, unit variance."""
    x, _ = sklearn.datasets.make_swiss_roll(2000, noise=0.3, random_state=1)
    return split(torch.tensor(x[:, ::2], dtype=torch.float32), torch.zeros(2000)).standardised()


@faulty(
    "diffusion",
    source="https://github.com/keras-team/keras-io/issues/989 (the noise is estimated as 0 for ever; "
    "another optimizer helps)",
    fix="Adam at 2e-3 in place of plain gradient descent at 1e-3",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low",),
)
def diffusion_at_a_crawl(fixed: bool) -> Program:
    """Gradient descent without momentum, at the rate that is right for Adam."""
    data = roll()
    return diffusion(data.x, data.test_x, adam(2e-3) if fixed else sgd(1e-3), 900)


# --- adversarial ------------------------------------------------------------------------


def painter(*, saturating: bool, rates: tuple[float, float], steps: int = 500) -> Program:
    """Digits from noise; the metric is their energy distance to real ones, 1 at best."""
    data = digits()

    def build(seed: int) -> dict[str, nn.Module]:
        return {
            "critic": nn.Sequential(
                nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
            ),
            "artist": nn.Sequential(
                nn.Linear(16, 64),
                nn.BatchNorm1d(64),
                nn.ReLU(),
                nn.Linear(64, 128),
                nn.BatchNorm1d(128),
                nn.ReLU(),
                nn.Linear(128, 64),
                nn.Sigmoid(),
            ),
        }

    def optimizer(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        return {
            role: torch.optim.Adam(models[role].parameters(), rate, betas=(0.5, 0.999))
            for role, rate in zip(("critic", "artist"), rates, strict=True)
        }

    def critic_loss(models: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        real, fake = (
            models["critic"](pair[0]),
            models["critic"](models["artist"](torch.randn(64, 16)).detach()),
        )
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def artist_loss(models: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
        score = models["critic"](models["artist"](torch.randn(64, 16)))
        return -F.softplus(score).mean() if saturating else F.softplus(-score).mean()

    def metric(models: Any) -> float:
        real = data.test_x

        def energy(points: Tensor) -> float:
            between, own = torch.cdist(points, real).mean(), torch.cdist(points, points).mean()
            return float(2 * between - own - torch.cdist(real, real).mean())

        def value() -> float:
            return max(
                -1.0,
                1 - energy(models["artist"](noise(400, 16, seed=7))) / energy(torch.full((400, 64), 0.5)),
            )

        return evaluated(models["artist"], value)

    return Program(
        build=build,
        optimizer=optimizer,
        batches=data.batches(64),
        loss={"critic": critic_loss, "artist": artist_loss},
        steps=steps,
        metric=metric,
    )


@faulty(
    "gan",
    source="own: the minimax loss of the first paper, with a critic that is given a better rate",
    fix="the non-saturating loss, rates that are alike",
    symptoms=("vanishing_gradient", "loss_not_decreasing", "saturation"),
    causes=("discriminator_saturation", "wrong_loss_or_output"),
)
def painter_without_advice(fixed: bool) -> Program:
    """The critic knows everything within a hundred steps, and log(1 − D) is flat where it is sure."""
    if fixed:
        return painter(saturating=False, rates=(1e-3, 2e-3))
    return painter(saturating=True, rates=(1e-2, 2e-4))


# --- healthy ----------------------------------------------------------------------------


@healthy("flow", 0.4, source="own: losses that become negative, and a bounded scale")
def flow_of_moons() -> Program:
    """Log densities above 0 are nothing odd."""
    return flow(moons().standardised(), 2.0, adam(2e-3), 400, layers=8)


@healthy("diffusion", 0.45, source="https://github.com/ermongroup/ddim/issues/33 (such a loss is normal)")
def diffusion_of_a_roll() -> Program:
    """After a few steps the loss stands near .5 and only swings: more of the noise cannot be known."""
    data = roll()
    return diffusion(data.x, data.test_x, adam(2e-3), 800)
