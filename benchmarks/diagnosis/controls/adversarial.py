"""Healthy generative adversarial nets on a ring of Gaussians, by every loss of common practice."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.diagnosis.recipe import held_out, source
from benchmarks.diagnosis.subject import Subject
from torch import Tensor, nn

from evenflow import Program
from evenflow.lab.networks import (
    Discriminator,
    Generator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from evenflow.lab.tasks import Ring

NOISE = 8
ring = Ring(modes=4, radius=1.5, std=0.15)


def spread(models: dict[str, nn.Module]) -> float:
    """Share of the modes that were found, times the share of points that lie near one (four σ)."""
    with torch.no_grad():
        points = models["generator"](torch.randn(512, NOISE, generator=source(5)))
    if not bool(torch.isfinite(points).all()):
        return -1.0
    near = torch.cdist(points, ring.centres) <= 4 * ring.std
    return float((near.float().mean(0) > 0.02).float().mean() * near.any(1).float().mean())


def adversaries(
    name: str,
    loss: Any,
    threshold: float = 0.5,
    rates: tuple[float, float] = (1e-3, 1e-3),
    penalty: float = 0.0,
    steps: int = 1200,
    d_turns: int = 1,
    spectral: bool = False,
    d_depth: int = 3,
) -> Subject:
    """Two nets against each other; (generator's, discriminator's) learning rates."""

    def build(seed: int) -> dict[str, nn.Module]:
        critic: nn.Module = Discriminator(width=64, depth=d_depth)
        if spectral:
            for module in critic.modules():
                if isinstance(module, nn.Linear):
                    nn.utils.parametrizations.spectral_norm(module)
        return {"generator": Generator(noise=NOISE, width=64, depth=3), "discriminator": critic}

    def optimizers(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        return {
            role: torch.optim.Adam(models[role].parameters(), rate, betas=(0.5, 0.99))
            for role, rate in zip(("generator", "discriminator"), rates, strict=True)
        }

    def d_loss(models: dict[str, nn.Module], real: Tensor) -> Tensor:
        fake = models["generator"](torch.randn(len(real), NOISE)).detach()
        judge = models["discriminator"]
        value = discriminator_loss(loss, judge(real), judge(fake))
        if penalty:
            value = value + gradient_penalty(judge, real, fake, torch.default_generator, penalty)
        return value

    def g_loss(models: dict[str, nn.Module], real: Tensor) -> Tensor:
        return generator_loss(
            loss, models["discriminator"](models["generator"](torch.randn(len(real), NOISE)))
        )

    def step(models: Any, optimizers: Any, real: Tensor) -> dict[str, Tensor]:
        figures = {}
        for role, value_of, turns in (("discriminator", d_loss, d_turns), ("generator", g_loss, 1)):
            for _ in range(turns):
                optimizers[role].zero_grad()
                value = value_of(models, real)
                value.backward()
                optimizers[role].step()
                figures[f"loss/{role}"] = value.detach()
        return figures

    def batches(seed: int) -> list[Tensor]:
        draw = source(seed)
        return [ring.sample(128, draw) for _ in range(50)]

    def program() -> Program:
        return Program(
            build=build,
            optimizer=optimizers,
            batches=batches,
            loss={"discriminator": d_loss, "generator": g_loss},
            steps=steps,
            step=step if d_turns > 1 else None,
            metric=spread,
            name=name,
        )

    return Subject(
        name=name,
        kind="gan",
        origin="control",
        split="held out" if held_out(name) else "open",
        program=program,
        seeds=(0, 1),
        threshold=threshold,
    )


def subjects() -> list[Subject]:
    return [
        adversaries("gan-hinge-spectral", "hinge", spectral=True, rates=(1e-3, 4e-3)),
        adversaries("gan-wasserstein-penalty", "wasserstein", penalty=1.0, d_turns=3, steps=600),
        adversaries("gan-two-rates", "non_saturating", rates=(5e-4, 2e-3), penalty=1.0),
    ]
