"""Small games of a generator and a discriminator, under watch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from evenflow.flow import Run
from evenflow.watch import watch


def play(
    generator_rate: float = 1e-3,
    discriminator_rate: float = 1e-3,
    *,
    distance: float = 3.0,
    saturating: bool = False,
    detached: bool = False,
    steps: int = 200,
) -> Run:
    """Points of a small cloud, ``distance`` away from zero in both coordinates, are to be imitated."""
    g = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    d = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    optimizers = {
        "generator": torch.optim.Adam(g.parameters(), generator_rate, betas=(0.5, 0.999)),
        "discriminator": torch.optim.Adam(d.parameters(), discriminator_rate, betas=(0.5, 0.999)),
    }
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    entropy = F.binary_cross_entropy_with_logits
    with watch({"generator": g, "discriminator": d}, optimizers, budget=None) as watcher:
        for _ in range(steps):
            real, made = distance + 0.3 * torch.randn(64, 2), g(torch.randn(64, 4)).detach()
            judged = entropy(d(real), ones) + entropy(d(made), zeros)
            optimizers["discriminator"].zero_grad()
            judged.backward()
            optimizers["discriminator"].step()
            made = g(torch.randn(64, 4))
            made = made.detach() if detached else made
            fooled = -entropy(d(made), zeros) if saturating else entropy(d(made), ones)
            optimizers["generator"].zero_grad()
            fooled.backward()
            optimizers["generator"].step()
            watcher.log(**{"loss/generator": fooled, "loss/discriminator": judged})
    return watcher.run
