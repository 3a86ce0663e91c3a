"""Gradients along time: one number a step, in the order in which a recurrence runs.

Two kinds of recurrence are read: fused layers (``nn.LSTM`` and its kin), whose
states carry a time step in the Flow, and loops over a cell, seen as a module
that uses its weights again and again along one way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from evenflow.diagnose.graph import OpGraph
from evenflow.flow import Flow, Row


@dataclass(frozen=True, slots=True)
class TimeProfile:
    """The gradient along one recurrence.

    Attributes:
        place: Module path.
        state: Which state of it, e.g. ``hidden_l0``.
        log10_norms: log10 ‖δ_t‖ in the order of running; −inf where it is zero.
        source: The user's line, if known.
    """

    place: str
    state: str
    log10_norms: tuple[float, ...]
    source: str | None = None

    @property
    def steps(self) -> int:
        """Length of the recurrence."""
        return len(self.log10_norms)

    @property
    def peak(self) -> int:
        """The step at which the gradient is largest, of equals the last."""
        return max(range(self.steps), key=lambda t: (self.log10_norms[t], t))

    def lost(self, decades: float) -> int:
        """How many steps before the peak lie more than ``decades`` below it."""
        top = self.log10_norms[self.peak]
        return sum(norm < top - decades for norm in self.log10_norms[: self.peak])

    @property
    def decades_per_step(self) -> float:
        """Mean loss per step going back from the peak, over the steps that are not zero."""
        finite = [t for t in range(self.peak) if math.isfinite(self.log10_norms[t])]
        if not finite:
            return math.inf if self.peak else 0.0
        first = finite[0]
        return (self.log10_norms[self.peak] - self.log10_norms[first]) / (self.peak - first)

    @property
    def growth(self) -> float:
        """Decades from the last step that has a gradient back to the largest."""
        with_gradient = [norm for norm in self.log10_norms if math.isfinite(norm)]
        return max(with_gradient) - with_gradient[-1] if with_gradient else 0.0

    def told(self, points: int = 5) -> str:
        """The profile in a sentence: log10 of the norm at some steps, in the order of running."""
        picks = sorted({round(i * (self.steps - 1) / (points - 1)) for i in range(points)})
        levels = ", ".join(
            f"{self.log10_norms[t]:.1f}" if math.isfinite(self.log10_norms[t]) else "zero" for t in picks
        )
        return f"log10 of the gradient at steps {', '.join(str(t + 1) for t in picks)}: {levels}."


def profiles(flow: Flow, graph: OpGraph) -> Iterator[TimeProfile]:
    """All recurrences of a Flow that run for at least two steps.

    Args:
        flow: The Flow.
        graph: Its ops.
    """
    source = {row.site.path: row.source for row in reversed(flow.rows) if row.source}
    for label, by_time in flow.time_profile().items():
        place, _, state = label.rpartition(":")
        place = place.partition("#")[0]
        order = sorted(by_time, reverse=state.endswith("_reverse"))
        if len(order) > 1:
            norms = tuple(by_time[t].log10_norm for t in order)
            yield TimeProfile(place, state, norms, source.get(place))
    for path, rows in graph.loops.items():
        yield TimeProfile(path, "loop", _by_turn(rows, len(graph.weights_at(rows[0]))), source.get(path))


def worst_states(found: Iterable[TimeProfile], decades: float) -> list[TimeProfile]:
    """For each module the state that remembers longest in its worst layer.

    The gradient may travel in either of an LSTM's two states, so a layer has
    forgotten only what both have lost.

    Args:
        found: Their gradients along time.
        decades: Below the largest at which a step is lost.
    """
    layers: dict[tuple[str, str], TimeProfile] = {}
    for profile in found:
        key = (profile.place, profile.state.partition("_")[2])
        best = layers.get(key)
        if best is None or profile.lost(decades) < best.lost(decades):
            layers[key] = profile
    modules: dict[str, TimeProfile] = {}
    for (module, _), profile in layers.items():
        worst = modules.get(module)
        if worst is None or profile.lost(decades) > worst.lost(decades):
            modules[module] = profile
    return list(modules.values())


def _by_turn(rows: Sequence[Row], weights: int) -> tuple[float, ...]:
    """The largest gradient of each turn: a call of the module, or as many uses as it has weights."""
    turns: dict[int, float] = {}
    called = rows[0].site.call != rows[-1].site.call
    for i, row in enumerate(rows):
        turn = row.site.call if called else i // weights
        norm = row.stats.log10_norm if row.stats is not None else -math.inf
        turns[turn] = max(turns.get(turn, -math.inf), norm)
    return tuple(turns.values())
