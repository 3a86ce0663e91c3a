"""A data set and the table of generators that make one from a case's description.

Every generator is deterministic: its seed comes from its own description, so two
builds of one case see the same data. Sizes are capped at :data:`MOST_NUMBERS` input
numbers; no run of the benchmark reaches beyond that many samples.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Task = Literal["labels", "values", "bits", "samples"]

MOST_NUMBERS = 6_000_000
FEWEST_SAMPLES = 192


class UnbuildableError(ValueError):
    """A case asks for something that has no rule here; it is reported, never approximated."""


@dataclass(frozen=True)
class Dataset:
    """Inputs, targets and what the targets mean.

    Attributes:
        x: Inputs [N, ...].
        y: Targets [N, ...].
        task: ``labels`` (classes, possibly per step, −100 = ignore), ``values``
            (regression), ``bits`` (independent 0/1 values) or ``samples`` (a GAN's
            real data; ``y`` is not read).
        adjacency: Of a graph, normalised.
    """

    x: Tensor
    y: Tensor
    task: Task
    adjacency: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Request:
    """What a generator may look at."""

    spec: dict[str, Any]
    shape: tuple[int, ...]
    target: str
    outputs: int
    per_step: bool
    rng: np.random.RandomState

    def count(self, default: int = 1000) -> int:
        wanted = int(self.spec.get("n") or self.spec.get("n_samples") or default)
        return max(1, min(wanted, max(FEWEST_SAMPLES, MOST_NUMBERS // max(1, math.prod(self.shape)))))


Generator = Callable[[Request], Dataset]
GENERATORS: dict[str, Generator] = {}


def generator(*names: str) -> Callable[[Generator], Generator]:
    def register(make: Generator) -> Generator:
        GENERATORS.update(dict.fromkeys(names, make))
        return make

    return register


@lru_cache(maxsize=4)
def _make(text: str, outputs: int, per_step: bool) -> Dataset:
    data = json.loads(text)
    spec = data["substitute"]
    if spec["generator"] not in GENERATORS:
        raise UnbuildableError(f"no generator {spec['generator']!r}")
    seed = zlib.crc32(json.dumps(spec, sort_keys=True).encode()) & 0x7FFFFFFF
    rng = np.random.RandomState(seed)
    request = Request(spec, tuple(data["input_shape"]), str(data.get("target")), outputs, per_step, rng)
    return GENERATORS[spec["generator"]](request)


def make(data: dict[str, Any], outputs: int, *, per_step: bool) -> Dataset:
    """The substitute data set of a case."""
    return _make(json.dumps(data, sort_keys=True), outputs, per_step)


def labels(x: Array, y: Array) -> Dataset:
    return Dataset(
        torch.as_tensor(np.asarray(x, np.float32)), torch.as_tensor(np.asarray(y, np.int64)), "labels"
    )


def values(x: Array, y: Array, task: Task = "values") -> Dataset:
    return Dataset(
        torch.as_tensor(np.asarray(x, np.float32)), torch.as_tensor(np.asarray(y, np.float32)), task
    )


def to_interval(v: Array, low: float, high: float) -> Array:
    scaled: Array = (v - v.min()) / (v.max() - v.min()) * (high - low) + low
    return scaled
