"""What the programs share: bundled data, batches, metrics, the usual loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sklearn.datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program

Metric = Callable[[Any, Tensor], float]


@dataclass(frozen=True)
class Split:
    """Samples to train on, and samples to judge by."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def map(
        self, x: Callable[[Tensor], Tensor] = lambda x: x, y: Callable[[Tensor], Tensor] = lambda y: y
    ) -> Split:
        """The same with inputs and targets changed."""
        return Split(x(self.x), y(self.y), x(self.test_x), y(self.test_y))

    def standardised(self) -> Split:
        """Inputs with mean 0 and deviation 1 on the training samples."""
        mean, std = self.x.mean(0), self.x.std(0).clamp_min(1e-6)
        return self.map(x=lambda x: (x - mean) / std)

    def standardised_targets(self) -> Split:
        """Targets with mean 0 and deviation 1 on the training samples."""
        mean, std = self.y.mean(0), self.y.std(0)
        return self.map(y=lambda y: (y - mean) / std)

    def batches(self, size: int) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
        """Shuffled batches; the incomplete last one is left out."""

        def made(seed: int) -> list[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
            return [(self.x[i], self.y[i]) for i in order.split(size) if len(i) == size]

        return made


def split(x: Any, y: Any, seed: int = 0, test: float = 0.25) -> Split:
    """Shuffle once, and keep a part to judge by."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, rest = order[int(len(x) * test) :], order[: int(len(x) * test)]
    return Split(x[first], y[first], x[rest], y[rest])


@cache
def digits(image: bool = False) -> Split:
    """Handwritten digits, 8 by 8, brightness 0 to 1."""
    data = sklearn.datasets.load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    return split(x.view(-1, 1, 8, 8) if image else x, torch.tensor(data.target))


@cache
def table(name: str) -> Split:
    """A bundled table as it is: wine, breast_cancer (classes), diabetes (numbers)."""
    more = {"scaled": False} if name == "diabetes" else {}
    data = getattr(sklearn.datasets, f"load_{name}")(**more)
    x = torch.tensor(data.data, dtype=torch.float32)
    return split(x, torch.tensor(data.target).float()[:, None] if more else torch.tensor(data.target))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers from a seed of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1) from a seed of their own."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Whole numbers in [0, high) from a seed of their own."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# --- metrics ----------------------------------------------------------------------------


def accuracy(output: Tensor, target: Tensor) -> float:
    """Of scores [..., K] and classes [...]."""
    return float((output.argmax(-1) == target).float().mean())


def sign_accuracy(output: Tensor, target: Tensor) -> float:
    """Of logits and 0 or 1."""
    return float(((output > 0) == (target > 0.5)).float().mean())


def half_accuracy(output: Tensor, target: Tensor) -> float:
    """Of probabilities and 0 or 1."""
    return float(((output > 0.5) == (target > 0.5)).float().mean())


def r2(output: Tensor, target: Tensor) -> float:
    """1 − error / variance; no less than −1."""
    error = (output - target).double().square().mean()
    return max(-1.0, 1.0 - float(error / (target - target.mean(0)).double().square().mean()))


def judged(data: Split, metric: Metric) -> Callable[[Any], float]:
    """The metric on the samples kept for it, in evaluation mode; −1 if the model answers with no numbers."""

    def value(model: Any) -> float:
        return evaluated(model, lambda: metric(_numbers(model(data.test_x)), data.test_y))

    return value


def evaluated(model: nn.Module, value: Callable[[], float]) -> float:
    """A number in evaluation mode, random state kept; −1 in place of NaN and of an error about it."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = value()
    except ArithmeticError:
        found = -1.0
    finally:
        model.train(was)
    return found if math.isfinite(found) else -1.0


def _numbers(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    if not bool(torch.isfinite(first).all()):
        raise ArithmeticError("the model answers with no numbers")
    return first


# --- programs ---------------------------------------------------------------------------


def supervised(
    build: Callable[[], nn.Module],
    data: Split,
    loss: Callable[[Any, Tensor], Tensor],
    optimizer: Callable[[Any], Any],
    steps: int,
    *,
    batch: int = 64,
    metric: Metric = accuracy,
    clip: float | None = None,
    judge: Callable[[Any], float] | None = None,
    shuffled: bool = True,
    **more: Any,
) -> Program:
    """The usual loop over shuffled batches; one of all samples, for nodes of a graph, if not ``shuffled``.

    ``judge`` takes the model, where the metric is not one of its outputs.
    """

    def clipped(model: nn.Module) -> None:
        assert clip is not None
        nn.utils.clip_grad_norm_(model.parameters(), clip)

    usual: dict[str, Any] = {
        "build": lambda seed: build(),
        "optimizer": optimizer,
        "batches": data.batches(batch) if shuffled else lambda seed: [(data.x, data.y)],
        "loss": lambda model, pair: loss(model(pair[0]), pair[1]),
        "steps": steps,
        "metric": judge or judged(data, metric),
        "before_step": None if clip is None else clipped,
    }
    return Program(**{**usual, **more})


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of logits [..., K] and classes [...]."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())
