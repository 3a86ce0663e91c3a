"""Real trainings, short ones, under watch: what rules over runs are tried on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import Finding, diagnose
from evenflow.flow import Run
from evenflow.watch import watch

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Data = tuple[Tensor, Tensor]


def clusters(samples: int = 256, features: int = 16, classes: int = 4, spread: float = 1.0) -> Data:
    """Points around one centre for each class."""
    centres = torch.randn(classes, features)
    labels = torch.randint(0, classes, (samples,))
    return centres[labels] + spread * torch.randn(samples, features), labels


def curve(samples: int = 256, features: int = 8, scale: float = 1.0, offset: float = 0.0) -> Data:
    """A smooth function of a few of the inputs, with noise."""
    x = torch.randn(samples, features)
    y = torch.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.1 * torch.randn(samples)
    return x, scale * y + offset


def net(
    activation: Callable[[], nn.Module] = nn.ReLU, layers: int = 3, inputs: int = 16, outputs: int = 4
) -> nn.Sequential:
    """A plain stack of 64 units a layer."""
    stack: list[nn.Module] = []
    for i in range(layers - 1):
        stack += [nn.Linear(64 if i else inputs, 64), activation()]
    return nn.Sequential(*stack, nn.Linear(64, outputs))


def squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.squeeze(-1), target)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    steps: int = 150,
    batch: int = 32,
    clip: float | None = None,
    schedule: Callable[[int], float] | None = None,
) -> Run:
    """Train for some steps, all of them sampled; ends a few steps after the loss was no number."""
    x, y = data
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
    broken = 0
    with watch(model, optimizer, budget=None) as watcher:
        for _ in range(steps):
            rows = torch.randint(0, len(x), (batch,)) if batch else torch.arange(len(x))
            value = loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            watcher.log(loss=value)
            if scheduler is not None:
                scheduler.step()
            broken += not math.isfinite(value.item())
            if broken > 5:
                break
    return watcher.run


def classify(optimizer: Optimizer, *, model: nn.Module | None = None, **more: Any) -> Run:
    """Clusters by a plain net."""
    data = clusters()
    model = net() if model is None else model
    return train(model, optimizer(model.parameters()), data, **more)


def found(run: Run, code: str) -> list[Finding]:
    """What one rule says of a run; it must not be skipped."""
    diagnosis = diagnose(run, select=code)
    assert diagnosis.skipped == ()
    return list(diagnosis.findings)


def alarms(run: Run, code: str) -> list[Finding]:
    """Its findings of severity warning and above."""
    return [finding for finding in found(run, code) if finding.severity.is_alarm]


def only(run: Run, code: str) -> Finding:
    (finding,) = found(run, code)
    return finding
