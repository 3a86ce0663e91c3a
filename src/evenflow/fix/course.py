"""A short training, and how well it went.

Losses alone are kept, besides the metric at the end. How good a course is must
be one number that a patched program shares with the unpatched one:

* the program's own metric, where it has one;
* else minus the loss, averaged over the last quarter;
* else, where the patch puts another loss in place, how much of its first loss is
  gone: the logarithm of first over last.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import process_time

import torch

from evenflow.program import Program

TAIL = 0.25
"""Share of a course whose mean loss counts; one batch alone says little."""

LOST = 30
"""Steps after which a course whose loss is no number is given up; shorter gaps a loss scaler mends."""


@dataclass(frozen=True, slots=True)
class Course:
    """One training.

    Attributes:
        losses: At every step; of several roles their sum.
        metric: The program's metric afterwards; None if it has none, or training broke.
        seconds: Processor time of training.
        trouble: Why there was no training; empty if there was.
        code: The patch as Python, where only the training could write it; else empty.
        cut: Whether the search's time was up before it ended; then nothing else is known.
    """

    losses: tuple[float, ...]
    metric: float | None
    seconds: float
    trouble: str = ""
    code: str = ""
    cut: bool = False

    @property
    def broken(self) -> bool:
        """Whether the loss ended as no number."""
        return not self.losses or not math.isfinite(self.losses[-1])

    @property
    def level(self) -> float:
        """Mean loss over the last quarter."""
        tail = self.losses[-max(1, int(len(self.losses) * TAIL)) :]
        return math.fsum(tail) / len(tail)

    def score(self, *, other_loss: bool) -> float:
        """How well it went, more is better; −∞ if it broke.

        Args:
            other_loss: Whether it is to be compared with a training on another loss.
        """
        if self.broken:
            return -math.inf
        if self.metric is not None:
            return self.metric
        return self.fallen if other_loss else -self.level

    @property
    def fallen(self) -> float:
        """By how much the loss fell: ln of first over last, or their difference if one is not above 0."""
        first, last = self.losses[0], self.level
        return math.log(first / last) if first > 0 and last > 0 else first - last


def train(program: Program, steps: int, seed: int = 0) -> Course:
    """Train from the beginning; what the program prints is held back.

    Random states of PyTorch on the CPU are as before afterwards.

    Raises:
        Exception: Whatever the program raises.
    """
    losses: list[float] = []
    began = process_time()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        training = program.start(seed)
        unsound = 0
        for figures in training.run(steps):
            losses.append(_loss(figures))
            unsound = 0 if math.isfinite(losses[-1]) else unsound + 1
            if unsound >= LOST:
                break
        seconds = process_time() - began
        sound = bool(losses) and math.isfinite(losses[-1])
        metric = program.metric(training.model) if program.metric is not None and sound else None
    return Course(tuple(losses), None if metric is None else float(metric), seconds)


def _loss(figures: Mapping[str, object]) -> float:
    """The step's loss, or the sum over roles."""
    return math.fsum(
        float(torch.as_tensor(value).mean())
        for name, value in figures.items()
        if name.partition("/")[0] == "loss"
    )
