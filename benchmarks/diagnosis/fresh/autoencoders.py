"""Autoencoders, plain and variational."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import Split, digits, r2, supervised
from benchmarks.diagnosis.recipe import adam, adamw, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def images() -> Split:
    """Digits, and the same as targets."""
    data = digits()
    return Split(data.x, data.x, data.test_x, data.test_x)


class VAE(nn.Module):
    """Encoder to mean and log variance, a draw, decoder."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean = nn.Linear(64, 8)
        self.logvar = nn.Linear(64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
        self.bounded = bounded

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h)
        if self.bounded:
            logvar = logvar.clamp(-8, 4)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return self.decoder(z), mean, logvar


def elbo(weight: float) -> Callable[[tuple[Tensor, Tensor, Tensor], Tensor], Tensor]:
    """Squared error and a weighted divergence, both summed over an image."""

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        image, mean, logvar = output
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
        return F.mse_loss(image, target, reduction="sum") / len(target) + weight * divergence

    return loss


def first_r2(output: Tensor, target: Tensor) -> float:
    """R² of the images."""
    return r2(output, target)


@faulty(
    "vae",
    source="https://github.com/vanderschaarlab/synthcity/issues/331",
    fix="pixels of 0 to 1, log variance clamped",
    symptoms=("exploding_gradient",),
    causes=("unscaled_input", "learning_rate_too_high", "unscaled_target"),
)
def exploding_variance(fixed: bool) -> Program:
    """Pixels of 0 to 255 into a VAE whose log variance is not bounded."""
    data = images()
    if not fixed:
        data = data.map(x=lambda x: x * 255, y=lambda y: y * 255)
    return supervised(
        lambda: VAE(bounded=fixed), data, elbo(0.05 if fixed else 1.0), adam(5e-3), 200, metric=first_r2
    )


@faulty(
    "vae",
    source="https://github.com/AntixK/PyTorch-VAE/issues/16 (a divergence that outgrows all; lower rates)",
    fix="Adam at .003",
    symptoms=("non_finite", "exploding_gradient", "loss_not_decreasing"),
    causes=("learning_rate_too_high",),
)
def vae_by_sgd(fixed: bool) -> Program:
    """A summed loss with SGD and momentum at .05: the exponential of the log variance runs away."""
    return supervised(
        lambda: VAE(bounded=False),
        images(),
        elbo(0.05),
        adam(3e-3) if fixed else sgd(0.05, 0.9),
        250,
        metric=first_r2,
    )


@faulty(
    "autoencoder",
    source="modelled on deep sigmoid autoencoders whose images are all the mean image",
    fix="ReLU in place of sigmoid",
    symptoms=("vanishing_gradient",),
    causes=("saturating_activation", "depth_without_skip"),
)
def mean_image(fixed: bool) -> Program:
    """64-48-32-16-32-48-64 with sigmoids throughout: each image becomes the mean image."""
    hidden = nn.ReLU if fixed else nn.Sigmoid

    def build() -> nn.Module:
        widths = [64, 48, 32, 16, 32, 48]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths[:-1]):
            layers += [nn.Linear(width, widths[i + 1]), hidden()]
        return nn.Sequential(*layers, nn.Linear(48, 64), nn.Sigmoid())

    return supervised(build, images(), F.mse_loss, adam(3e-3), 300, metric=r2)


@faulty(
    "autoencoder",
    source="modelled on questions about a Sigmoid decoder for standardised pixels",
    fix="no sigmoid at the output",
    symptoms=("saturation",),
    causes=("wrong_loss_or_output", "saturating_activation"),
)
def clipped_decoder(fixed: bool) -> Program:
    """Targets are standardised, from −.8 to 1.9; the decoder ends in a sigmoid."""
    data = digits().map(x=lambda x: (x - 0.3) / 0.37)
    data = Split(data.x, data.x, data.test_x, data.test_x)
    end: list[nn.Module] = [] if fixed else [nn.Sigmoid()]
    return supervised(
        lambda: nn.Sequential(
            nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 64), *end
        ),
        data,
        F.mse_loss,
        adam(3e-3),
        300,
        metric=r2,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("vae", 0.4, source="Kingma & Welling 2014: the loss rests far from zero")
def steady_vae() -> Program:
    """Its divergence keeps the loss up, and the draw makes it noisy."""
    return supervised(lambda: VAE(bounded=False), images(), elbo(0.1), adamw(3e-3), 400, metric=first_r2)


@healthy("autoencoder", 0.8, source="own: overcomplete and sparse by an L1 penalty")
def sparse_codes() -> Program:
    """256 rectifier units for 64 pixels under a penalty: nine in ten are zero for any one image."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(64, 256)
            self.decoder = nn.Linear(256, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            code = F.relu(self.encoder(x))
            return self.decoder(code), code

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + 2e-3 * output[1].abs().mean()

    return supervised(Sparse, images(), loss, adam(2e-3), 400, metric=first_r2)
