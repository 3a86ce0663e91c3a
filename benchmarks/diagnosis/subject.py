"""A subject of the benchmark: a program, what is wrong with it, and how it is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evenflow import Program

Origin = Literal["corpus", "control", "twin", "fresh", "unseen", "matrix"]
Split = Literal["open", "held out"]


@dataclass(frozen=True)
class Subject:
    """A program with its known diagnosis.

    Attributes:
        name: Unique.
        kind: The architecture.
        origin: From the corpus, one of our healthy controls, a control with one fault put in, or
            written blind (see ``fresh`` and ``unseen``), or a control with a fault that chance chose
            (see ``matrix``).
        split: Whether rule authors may look at it.
        program: Makes the program; it is built anew for every tool.
        symptoms: What may rightly be reported.
        confirmed: Which of these were seen without any tool; a tool that misses one has missed something.
        causes: Any of these named first is right.
        places: Module paths of which one must be named for the place to be right; empty if not known.
        seeds: With which it is run.
        threshold: The metric that a healthy program must reach.
        ceiling: The metric that a faulty one must stay below, or it is not faulty.
    """

    name: str
    kind: str
    origin: Origin
    split: Split
    program: Callable[[], Program]
    symptoms: tuple[str, ...] = ()
    confirmed: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    threshold: float | None = None
    ceiling: float | None = None

    def as_claimed(self, metric: float | None) -> bool:
        """Whether a metric after training agrees with what is claimed; without a bound, a number does.

        A program that is known to be healthy may break all the same: ``hc-pt-time-sequence``
        does from seed 0, where L-BFGS without a line search takes its loss to infinity.
        """
        if not self.faulty and metric is not None and not math.isfinite(metric):
            return False
        if self.threshold is not None:
            return metric is not None and metric >= self.threshold
        return self.ceiling is None or metric is None or not metric >= self.ceiling

    @property
    def faulty(self) -> bool:
        """Whether something is wrong with it."""
        return bool(self.symptoms)
