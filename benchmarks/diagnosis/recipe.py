"""Short words for writing down training programs: data, batches, metrics, optimizers.

A *source* draws ``(inputs, targets)`` of a size from a generator; the lab's tasks
are sources, and so is any function of these two arguments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from benchmarks.diagnosis.subject import Subject
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program

Source = Callable[[int, torch.Generator], tuple[Any, Any]]
Pair = tuple[Tensor, Tensor]
"""Inputs and targets."""
Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], float]
Build = Callable[[], Any]

_ROUND = 50
"""Batches in one round through data without end."""
_FRESH = 1_000_000
"""Seed of the batch that a trained model is judged on."""


def held_out(name: str) -> bool:
    """Whether a program belongs to the half that is looked at only at the end: by a hash of its name."""
    return zlib.crc32(name.encode()) % 2 == 1


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Recipe:
    """A supervised training, as text books have it; ``twin`` puts a fault into it.

    Attributes:
        name: Unique.
        kind: The architecture.
        build: Makes the model.
        data: Draws samples.
        loss: From output and target.
        metric: From output and target, more is better.
        threshold: The metric, on fresh samples, from which on it has learned its task.
        optimizer: From a model.
        steps: Optimizer steps.
        batch: Samples a step.
        clip: Largest norm of the whole gradient.
        scheduler: See :class:`evenflow.Program`.
        more: Other arguments of the Program.
    """

    name: str
    kind: str
    build: Build
    data: Source
    loss: Loss
    metric: Metric
    threshold: float
    optimizer: Callable[[Any], Any]
    steps: int = 300
    batch: int = 64
    clip: float | None = None
    scheduler: Callable[[Any], Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def program(self) -> Program:
        """The recipe as a program."""

        def batches(seed: int) -> list[tuple[Any, Any]]:
            draw = source(seed)
            return [self.data(self.batch, draw) for _ in range(_ROUND)]

        def value(model: Any, batch: tuple[Any, Any]) -> Tensor:
            return self.loss(answer(model, batch[0]), batch[1])

        def clipped(model: nn.Module) -> None:
            assert self.clip is not None
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)

        usual = Program(
            build=lambda seed: self.build(),
            optimizer=self.optimizer,
            batches=batches,
            loss=value,
            steps=self.steps,
            before_step=None if self.clip is None else clipped,
            scheduler=self.scheduler,
            metric=self.judge,
            name=self.name,
        )
        return replace(usual, **self.more)

    def judge(self, model: Any) -> float:
        """The metric on fresh samples, in evaluation mode."""
        return judged(model, self.data, self.metric)

    def healthy(self, seeds: tuple[int, ...] = (0, 1)) -> Subject:
        """The recipe as a control."""
        return Subject(
            name=self.name,
            kind=self.kind,
            origin="control",
            split="held out" if held_out(self.name) else "open",
            program=self.program,
            seeds=seeds,
            threshold=self.threshold,
        )


def answer(model: nn.Module, inputs: Any) -> Any:
    """What the model says; a tuple of inputs becomes its arguments."""
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def judged(model: nn.Module, data: Source, metric: Metric, size: int = 512) -> float:
    """A metric on fresh samples; −1 if the model answers with no numbers."""
    was = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        inputs, targets = data(size, source(_FRESH))
        output = answer(model, inputs)
    model.train(was)
    first = output[0] if isinstance(output, tuple) else output
    return metric(output, targets) if bool(torch.isfinite(first).all()) else -1.0


# --- losses and metrics ----------------------------------------------------------------


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of logits [..., K] and classes [...]."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def accuracy(output: Tensor, target: Tensor) -> float:
    """Of logits [..., K] and classes [...]."""
    return float((output.argmax(-1) == target).float().mean())


def bits(output: Tensor, target: Tensor) -> float:
    """Share of right signs of logits, for targets 0 and 1."""
    return float(((output > 0) == (target > 0.5)).float().mean())


def r2(output: Tensor, target: Tensor) -> float:
    """1 − error / variance."""
    return 1.0 - float((output - target).square().mean() / (target - target.mean(0)).square().mean())


# --- optimizers ------------------------------------------------------------------------


def sgd(lr: float, momentum: float = 0.0, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr, momentum, **more)


def adam(lr: float = 1e-3, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr, **more)


def adamw(lr: float = 1e-3, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr, **more)


def warmup(steps: int) -> Callable[[Any], Any]:
    """The learning rate rises in a straight line, then stays."""
    return lambda one: torch.optim.lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / steps))


# --- data -------------------------------------------------------------------------------


def task(one: Any) -> Source:
    """The source of a task of the lab."""
    draw: Source = one.batch
    return draw


def mapped(
    data: Source, inputs: Callable[[Any], Any] = lambda x: x, targets: Callable[[Any], Any] = lambda y: y
) -> Source:
    """The source with its inputs and targets changed."""

    def draw(size: int, generator: torch.Generator) -> tuple[Any, Any]:
        x, y = data(size, generator)
        return inputs(x), targets(y)

    return draw


def teacher(inputs: int, outputs: int, noise: float = 0.05) -> Source:
    """Numbers from a fixed random net of one hidden layer, unit variance; inputs N(0, 1)."""
    draw = source(7)
    first = torch.randn(inputs, 32, generator=draw) / inputs**0.5
    second = torch.randn(32, outputs, generator=draw) / 32**0.5
    scale = 1.6  # tanh of N(0, 1) has variance .394

    def sample(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, inputs, generator=generator)
        y = scale * (x @ first).tanh() @ second
        return x, y + noise * torch.randn(y.shape, generator=generator)

    return sample
