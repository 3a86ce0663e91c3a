"""From a net to the numbers of an experiment, by way of :func:`evenflow.measure.measure`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from evenflow.flow import Flow, Role
from evenflow.lab.seeds import generator, seeded
from evenflow.measure import measure


def draw(
    build: Callable[[], nn.Module],
    inputs: Tensor,
    seed: int,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Flow:
    """The flow through one random net.

    Args:
        build: Makes the net; it may draw from PyTorch's global state.
        inputs: The batch.
        seed: Of the net.
        loss: From the output to a scalar. Without one the gradient that enters at
            the output is a random vector of length 1, so that nothing but the net
            itself shapes what arrives further down.
    """
    with seeded(seed):
        model = build()
    return measure(model, inputs, loss, seed=seed)


def gaussian(*shape: int, seed: int) -> Tensor:
    """Inputs from N(0, 1)."""
    return torch.randn(shape, generator=generator(seed))


def log10_norms(flow: Flow, ending: str, role: Role = Role.ACTIVATION_GRADIENT) -> list[float]:
    """log10 ‖·‖ at the outputs of all modules whose path ends so, in forward order."""
    return [stats.log10_norm for place, stats in flow.stats(role).items() if place.endswith(ending)]


def relative(levels: list[float]) -> list[float]:
    """Levels above the last one: what became of the gradient on its way back from the end."""
    return [difference(level, levels[-1]) for level in levels]


def difference(a: float, b: float) -> float:
    """A − b, where a gradient that is gone stays gone."""
    return -math.inf if a == -math.inf else a - b
