"""What is shown of a training that runs, in plain values: the panel and the lines print it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenflow.watch import Watch


@dataclass(frozen=True, slots=True)
class Layer:
    """The gradient of one module's own parameters over the last steps.

    Attributes:
        name: Path of the module.
        levels: log10 of the norm at each step of the view; None where it is 0, or was not taken.
    """

    name: str
    levels: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A moment of a run.

    Attributes:
        step: Number of the step that runs.
        losses: Name → its last values, oldest first.
        steps: The steps that ``layers`` are about.
        layers: In the model's order.
        norm: The last gradient norm of the whole model; NaN if it was not taken.
        cost: Share of the time that watching took.
    """

    step: int
    losses: dict[str, list[float]] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    layers: tuple[Layer, ...] = ()
    norm: float = math.nan
    cost: float = 0.0


def view_of(watch: Watch) -> View:
    """The moment now, read from the ring of last steps while training goes on."""
    ring = watch.recent
    steps = list(ring.steps)
    losses: dict[str, list[float]] = {}
    for step in steps:
        for name, values in list(step.figures.items()):
            if name.partition("/")[0] == "loss":
                losses.setdefault(name, []).append(float(values[-1]))
    rows = {
        (step, name): value
        for norms in list(ring.norms.values())
        for step, values in norms.rows()
        for name, value in zip(norms.names, values, strict=False)
    }
    numbers = tuple(sorted({step for step, _ in rows}))
    names = [name for norms in list(ring.norms.values()) for name in norms.names]
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.rpartition(".")[0] or "(model)", []).append(name)
    layers = tuple(
        Layer(module, tuple(_level([rows.get((step, name)) for name in own]) for step in numbers))
        for module, own in modules.items()
    )
    latest = [value for (step, _), value in rows.items() if numbers and step == numbers[-1]]
    norm = math.sqrt(sum(value * value for value in latest)) if latest else math.nan
    return View(watch.step, losses, numbers, layers, norm, watch.cost.fraction)


def _level(norms: Sequence[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    total = math.sqrt(sum(norm * norm for norm in known)) if known else 0.0
    if math.isnan(total) or math.isinf(total):
        return math.inf
    return math.log10(total) if total > 0.0 else None


def thinned(layers: Sequence[Layer], count: int) -> list[Layer]:
    """At most so many layers, evenly spaced, the first and the last among them."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def number(value: float) -> str:
    """A figure in a few characters."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)
