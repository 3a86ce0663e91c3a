"""The ring: the last steps in detail, in bounded memory.

Of each of the last :data:`LENGTH` steps it keeps the figures, and the gradient
norm of every parameter in a buffer that is made once; of the last
:data:`SAMPLES` sampled ones everything. When something breaks, this is the way
that led there.

A *spike* is a figure ``y`` (the loss; the logarithm of the gradient norm) that
exceeds all in a full ring by more than their whole spread,

    y > max + (max − min).

For 64 draws of a normal distribution the expected maximum is 2.4 σ and the spread
4.7 σ, so that is some 7 σ, one step in 10¹²; noise with a heavier tail spreads the
ring itself. Where a ring hardly spreads at all, a tenth of the loss and a doubling
of the norm are asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import final

import torch
from torch import Tensor

from evenflow.watch.sample import Step

LENGTH = 64
"""Steps in the ring."""
SAMPLES = 8
"""Sampled steps of which the ring keeps every row: some hundred kilobytes each for a hundred layers."""
_SMALLEST_LOSS_SPREAD = 0.1
_SMALLEST_NORM_SPREAD = math.log(2.0)


@final
class NormRing:
    """Gradient norms of single parameters over the last steps, on the device where they are made."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._rows: Tensor | None = None
        self._steps: list[int] = []
        self._next = 0

    def put(self, step: int, names: Sequence[str], norms: Tensor) -> None:
        """Take the norms [parameters] of a step."""
        if self._rows is None or len(norms) != self._rows.shape[1] or tuple(names) != self.names:
            self._rows = torch.zeros(LENGTH, len(norms), dtype=norms.dtype, device=norms.device)
            self.names, self._steps, self._next = tuple(names), [-1] * LENGTH, 0
        self._rows[self._next].copy_(norms)
        self._steps[self._next] = step
        self._next = (self._next + 1) % LENGTH

    def rows(self) -> list[tuple[int, list[float]]]:
        """Step and norms, oldest first; waits for the device."""
        if self._rows is None:
            return []
        values = self._rows.tolist()
        order = [*range(self._next, LENGTH), *range(self._next)]
        return [(self._steps[slot], values[slot]) for slot in order if self._steps[slot] >= 0]


@final
class Ring:
    """The last steps."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=LENGTH)
        self.norms: dict[str, NormRing] = {}
        """Name of an optimizer → the gradient norms of its parameters."""
        self._figures: dict[str, deque[float]] = {}
        self._sampled: deque[Step] = deque()

    def put(self, step: Step) -> None:
        """Take a step that has ended; the oldest one goes, and the samples of an older one."""
        self.steps.append(step)
        if not step.samples:
            return
        self._sampled.append(step)
        if len(self._sampled) > SAMPLES:
            oldest = self._sampled.popleft()
            slot = next((slot for slot, one in enumerate(self.steps) if one is oldest), None)
            if slot is not None:
                self.steps[slot] = Step(oldest.number, oldest.figures, [], oldest.events)

    def put_norms(self, step: int, optimizer: str, names: Sequence[str], norms: Tensor) -> None:
        """Take the norm of the gradient of each parameter [parameters] that an optimizer moves."""
        self.norms.setdefault(optimizer, NormRing()).put(step, names, norms)

    def spikes(self, name: str, value: float, *, logarithmic: bool = False) -> bool:
        """Whether a figure spikes; it is then, or not, part of the ring that later ones are held against."""
        y = math.log(value) if logarithmic and value > 0.0 else value
        known = self._figures.setdefault(name, deque(maxlen=LENGTH))
        spike = False
        if len(known) == LENGTH:
            largest = max(known)
            least = _SMALLEST_NORM_SPREAD if logarithmic else _SMALLEST_LOSS_SPREAD * abs(largest)
            spike = y > largest + max(largest - min(known), least)
        if math.isfinite(y):
            known.append(y)
        return spike

    def latest(self, name: str, count: int) -> list[float]:
        """The last values of a figure, oldest first; NaN where it is not known yet."""
        found = [_value(step.figures, name) for step in islice(reversed(self.steps), count)]
        return found[::-1]


def _value(figures: Mapping[str, Sequence[float | Tensor]], name: str) -> float:
    values = figures.get(name)
    return float(values[-1]) if values else math.nan
