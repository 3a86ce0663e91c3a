"""A metric for generators of programs that have none: how alike their samples are to real ones.

The distance is the sliced Wasserstein-2 distance, the mean over random directions of the
distance between samples and data along each. The score is 1 - distance² / the same of a
generator that always gives the mean of the data: 1 is the data's own distribution, 0 is no
better than one point at its middle, below 0 is worse, as with R².

References:
    N. Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures",
    J. Math. Imaging Vis. 51 (2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from evenflow import Program

SAMPLES = 512
"""As many as the metrics of the other programs take."""
DIRECTIONS = 128
"""Random directions; the standard error over them is some hundredths of the score at most."""


def with_likeness(program: Program) -> Program:
    """The program with that metric, if it trains a generator and has none."""
    loss = program.loss
    if program.metric is not None or not isinstance(loss, Mapping) or "generator" not in loss:
        return program
    noise = _noise(program)
    real = torch.cat(list(islice((batch[0] for batch in program.batches(0)), SAMPLES)))[:SAMPLES].flatten(1)

    def metric(models: Mapping[str, nn.Module]) -> float:
        generator = models["generator"]
        was = generator.training
        generator.eval()
        with torch.no_grad():
            source = torch.Generator().manual_seed(0)
            made = generator(torch.randn(len(real), *noise, generator=source)).flatten(1)
        generator.train(was)
        return likeness(made, real)

    return replace(program, metric=metric)


def likeness(made: Tensor, real: Tensor) -> float:
    """The score of samples [count, features] beside as many real ones; -inf if they are no numbers."""
    if not torch.isfinite(made).all():
        return float("-inf")
    source = torch.Generator().manual_seed(1)
    ways = nn.functional.normalize(torch.randn(real.shape[1], DIRECTIONS, generator=source), dim=0)
    along = (real @ ways).sort(0).values
    distance = ((made @ ways).sort(0).values - along).square().mean()
    return 1 - float(distance / (along - along.mean(0)).square().mean())


def _noise(program: Program) -> tuple[int, ...]:
    """Shape of one sample that the generator is called with."""
    with torch.random.fork_rng(devices=[]):
        training = program.start(0)
        seen: list[Any] = []
        training.model["generator"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        training.losses["generator"](training.model, training.first_batch())
    return tuple(seen[0].shape[1:])
