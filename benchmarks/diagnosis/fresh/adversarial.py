"""Generative adversarial networks on points and small images."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import evaluated, noise, uniform
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def ring(count: int, seed: int) -> Tensor:
    """Points near a circle of radius 2."""
    angle = 2 * math.pi * uniform(count, seed=seed)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * noise(count, 2, seed=seed + 1)


def likeness(models: Any) -> float:
    """1 − the energy distance to the ring, in units of what a generator of zeros has."""
    generator: nn.Module = models["generator"]
    real = ring(800, 9)

    def distance(points: Tensor) -> float:
        between, own = torch.cdist(points, real).mean(), torch.cdist(points, points).mean()
        return float(2 * between - own - torch.cdist(real, real).mean())

    def value() -> float:
        return 1 - distance(generator(noise(800, 8, seed=9))) / distance(torch.zeros(800, 2))

    return evaluated(generator, value)


def game(
    *, saturating: bool, rates: tuple[float, float], sigmoid: bool = False, width: int = 128, steps: int = 500
) -> Program:
    """The usual alternation; losses of logits, or of probabilities if ``sigmoid``."""

    def build(seed: int) -> dict[str, nn.Module]:
        end: list[nn.Module] = [nn.Sigmoid()] if sigmoid else []
        return {
            "discriminator": nn.Sequential(
                nn.Linear(2, width),
                nn.LeakyReLU(0.2),
                nn.Linear(width, width),
                nn.LeakyReLU(0.2),
                nn.Linear(width, 1),
                *end,
            ),
            "generator": nn.Sequential(
                nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
            ),
        }

    def optimizer(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        return {
            role: torch.optim.Adam(models[role].parameters(), rate, betas=(0.5, 0.9))
            for role, rate in zip(("discriminator", "generator"), rates, strict=True)
        }

    def judge(models: Any, points: Tensor) -> Tensor:
        score: Tensor = models["discriminator"](points)
        return score

    def d_loss(models: Any, batch: Tensor) -> Tensor:
        fake = models["generator"](torch.randn(len(batch), 8)).detach()
        real_score, fake_score = judge(models, batch), judge(models, fake)
        real = F.binary_cross_entropy_with_logits(real_score, torch.ones_like(real_score))
        return real + F.binary_cross_entropy_with_logits(fake_score, torch.zeros_like(fake_score))

    def g_loss(models: Any, batch: Tensor) -> Tensor:
        score = judge(models, models["generator"](torch.randn(len(batch), 8)))
        if saturating:
            return -F.binary_cross_entropy_with_logits(score, torch.zeros_like(score))
        return F.binary_cross_entropy_with_logits(score, torch.ones_like(score))

    return Program(
        build=build,
        optimizer=optimizer,
        batches=lambda seed: list(ring(128 * 20, 100 + seed).split(128)),
        loss={"discriminator": d_loss, "generator": g_loss},
        steps=steps,
        metric=likeness,
    )


@faulty(
    "gan",
    source="https://github.com/soumith/ganhacks/issues/36",
    fix="the non-saturating loss, and equal rates",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("discriminator_saturation", "learning_rate_too_high"),
)
def bullied_generator(fixed: bool) -> Program:
    """The minimax loss, and a wide discriminator that learns fifty times as fast."""
    if fixed:
        return game(saturating=False, rates=(2e-3, 2e-3))
    return game(saturating=True, rates=(5e-3, 1e-4), width=256)


@faulty(
    "gan",
    source="modelled on issues where a Sigmoid discriminator meets BCEWithLogitsLoss",
    fix="no sigmoid in the discriminator",
    symptoms=("saturation", "vanishing_gradient"),
    causes=("wrong_loss_or_output", "discriminator_saturation"),
    places=("discriminator", "discriminator.5", "5"),
)
def sigmoid_judge(fixed: bool) -> Program:
    """A sigmoid in the discriminator, and BCEWithLogitsLoss on that."""
    return game(saturating=False, rates=(2e-3, 2e-3), sigmoid=not fixed)


# --- healthy ----------------------------------------------------------------------------


@healthy("gan", 0.8, source="own: points of a ring, the usual example")
def ring_game() -> Program:
    """Losses that never fall: the players stay even."""
    return game(saturating=False, rates=(2e-3, 2e-3), steps=600)
