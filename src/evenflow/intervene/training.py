"""Findings that only training shows: the program and a patched copy take the same few steps.

Both start from the same seed and see the same batches. Each loss counts relative to the
one that it started from, so that a change of the loss's units does not matter.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
from dataclasses import dataclass
from time import perf_counter

import torch

from evenflow.diagnose import limits
from evenflow.intervene.figure import Comparison
from evenflow.program import Program

FEWEST = 10
"""Steps below which two losses are not compared."""
PATIENCE = 1.0
"""Seconds below which a slow first step, which may set things up, is no reason to stop."""
TAIL = 0.25
"""Share of the steps, the last ones, whose median is the loss reached."""


@dataclass(frozen=True, slots=True)
class Course:
    """The losses of a short training."""

    losses: tuple[float, ...]

    def fallen(self, steps: int) -> float:
        """Ln of the first loss over the one reached within so many steps; −∞ if it broke."""
        seen = self.losses[:steps]
        first, tail = seen[0], seen[-max(1, int(len(seen) * TAIL)) :]
        if not all(map(math.isfinite, (first, *tail))):
            return -math.inf
        reached = statistics.median(tail)
        return math.log(first / reached) if first > 0.0 and reached > 0.0 else first - reached

    def noise(self, steps: int) -> float:
        """Standard error of the loss reached, relative to the first."""
        seen = self.losses[:steps]
        tail = [one / abs(seen[0]) for one in seen[-max(2, int(len(seen) * TAIL)) :] if seen[0]]
        if len(tail) < 2 or not all(map(math.isfinite, tail)):
            return 0.0
        return statistics.stdev(tail) / math.sqrt(len(tail))


def train(program: Program, seed: int, seconds: float, steps: int | None = None) -> Course:
    """Train for some seconds, or steps if these are over earlier; what the program prints is held back.

    It stops at once where :data:`FEWEST` steps would take longer than that.

    Raises:
        Exception: Whatever the program raises.
    """
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        training = program.start(seed)
        began = perf_counter()
        for figures in training.run(steps or program.steps):
            losses.append(
                math.fsum(
                    float(torch.as_tensor(value).mean())
                    for name, value in figures.items()
                    if name.partition("/")[0] == "loss"
                )
            )
            spent = perf_counter() - began
            if spent > seconds or spent / len(losses) * FEWEST > max(seconds, PATIENCE):
                break
            if len(losses) >= FEWEST and not math.isfinite(losses[-1]):
                break
    return Course(tuple(losses))


def compare_courses(control: Course, patched: Course) -> Comparison:
    """How much faster the loss falls with a patch.

    All the ill is gone (1) if the fall of the loss, in e-foldings, is twice what it was; nothing (0) if it is
    the same within :data:`~evenflow.diagnose.limits.CHANCE` standard errors. It cannot be said if these
    leave room for a factor of two, or if the loss falls well as it is.
    """
    steps = min(len(control.losses), len(patched.losses))
    broke = not math.isfinite(control.losses[-1]) or not math.isfinite(patched.losses[-1])
    if steps < FEWEST and not broke:
        return Comparison(None, None, None, f"only {steps} steps could be taken in the time")
    was, now = control.fallen(steps), patched.fallen(steps)
    told = f"the loss is {_told(now)} after {steps} steps rather than {_told(was)}"
    if now == -math.inf:
        return Comparison(was, now, None if was == -math.inf else -1.0, told)
    if was == -math.inf:
        return Comparison(was, now, 1.0, told)
    gain = now - was
    chance = limits.CHANCE.value * math.hypot(control.noise(steps), patched.noise(steps))
    if gain <= chance and gain + chance > math.log(limits.LEAP.value):
        return Comparison(was, now, None, f"{told}, within the noise")
    gone = min(1.0, gain / max(was, now / 2.0)) if gain > chance else 0.0
    if gone < 1.0 and was > math.log(limits.LEAP.value):
        return Comparison(was, now, None, f"{told}, so it takes more steps to tell")
    if gone > 0.0 and now < limits.FLAT.value:  # better than it was, and not good
        return Comparison(was, now, None, told)
    return Comparison(was, now, gone, told)


def _told(fallen: float) -> str:
    if fallen == -math.inf:
        return "no number"
    return f"{math.exp(min(-fallen, 700.0)):.3g} times its first value"
