"""Training on a task for the experiments that need it: a plain loop, and optimizers by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from evenflow.errors import EvenflowError
from evenflow.lab.seeds import generator
from evenflow.lab.tasks import Task

OptimizerName: TypeAlias = Literal["sgd", "momentum", "adam", "adamw"]


def optimizer(name: OptimizerName, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The optimizer of that name with PyTorch's own settings; ``momentum`` is SGD with .9."""
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=rate),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=rate),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=rate),
    }
    if name not in kinds:
        raise EvenflowError(f"There is no optimizer {name!r} in the lab. It has: {', '.join(kinds)}.")
    return kinds[name]()


def train(
    model: nn.Module,
    task: Task,
    steps: int,
    *,
    rate: float,
    optimizer_name: OptimizerName = "sgd",
    batch: int = 64,
    clip: float | None = None,
    warmup: int = 0,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Train, and give the loss and the gradient's norm (before clipping) of every step.

    It stops early when either is no longer finite; that last step is in the list.

    Args:
        model: Trained in place.
        task: Gives batches and the loss.
        steps: Number of updates.
        rate: Learning rate.
        optimizer_name: As in :func:`optimizer`.
        batch: Samples per step.
        clip: Largest norm of the whole gradient; None leaves it alone.
        warmup: Steps over which the learning rate rises in equal parts to ``rate``.
        seed: Of the batches.
    """
    source, history = generator(seed), []
    stepper = optimizer(optimizer_name, model, rate)
    for step in range(1, steps + 1):
        for group in stepper.param_groups:
            group["lr"] = rate * min(1.0, step / max(1, warmup))
        inputs, targets = task.batch(batch, source)
        loss: Tensor = task.loss(model(inputs), targets)
        stepper.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
        history.append((loss.item(), norm.item()))
        if not (math.isfinite(history[-1][0]) and math.isfinite(history[-1][1])):
            break
        stepper.step()
    return history


@torch.no_grad()
def fresh_loss(model: nn.Module, task: Task, *, batch: int = 1000, seed: int = 1_000_000) -> float:
    """Loss on a fresh batch; inf where the model gives no numbers."""
    inputs, targets = task.batch(batch, generator(seed))
    loss = task.loss(model(inputs), targets).item()
    return loss if math.isfinite(loss) else math.inf
