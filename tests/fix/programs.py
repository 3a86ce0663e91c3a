"""Small programs on digits, ill and healthy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program

Batch = tuple[Tensor, Tensor]


@cache
def points() -> Batch:
    """Four Gaussian clouds in 32 dimensions: 512 samples that a linear net tells apart."""
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (512,), generator=source)
    centres = torch.randn(4, 32, generator=source)
    return 1.5 * centres[labels] + torch.randn(512, 32, generator=source), labels


def batches(seed: int) -> Iterator[Batch]:
    """Batches of 64, shuffled."""
    inputs, labels = points()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for part in order.split(64):
        yield inputs[part], labels[part]


def accuracy(model: nn.Module) -> float:
    """On all points."""
    inputs, labels = points()
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())


def chain(depth: int, act: type[nn.Module]) -> Callable[[int], nn.Module]:
    """A plain chain of 32 units with PyTorch's init."""

    def build(seed: int) -> nn.Module:
        parts = [part for _ in range(depth) for part in (nn.Linear(32, 32), act())]
        return nn.Sequential(*parts, nn.Linear(32, 4))

    return build


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def program(build: Callable[[int], nn.Module], lr: float = 0.1, steps: int = 200, **parts: object) -> Program:
    """With plain gradient descent."""
    return Program(
        build=build,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=lr),
        batches=batches,
        loss=loss,
        steps=steps,
        metric=accuracy,
        **parts,  # type: ignore[arg-type]
    )


def sigmoid() -> Program:
    """Ten sigmoid layers: nothing arrives at the first."""
    return program(chain(10, nn.Sigmoid))


def healthy() -> Program:
    """Two ReLU layers."""
    return program(chain(2, nn.ReLU))


def too_fast() -> Program:
    """A learning rate of 1000."""
    return program(chain(2, nn.ReLU), lr=1000.0)
