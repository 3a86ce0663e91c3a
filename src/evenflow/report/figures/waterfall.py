"""The waterfall: the gain budget as steps from the loss to the input.

A long chain is joined to runs of neighbours, so that the steps always add up
to the whole way (:func:`join`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evenflow.flow import LOSS_PATH, Flow, Link, Role
from evenflow.flow.budget import block_of, group


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the waterfall: one link of the budget, or a run of neighbours.

    Attributes:
        first: Place of the step's first link, in the direction of flow.
        last: Place of its last link.
        links: How many links it holds.
        log10_before: log10 of the norm before the step.
        log10_after: log10 of the norm after it.
        kind: Class of the module that a single link stands for, or its ops; empty for a run.
        source: The user's line, where one link has one.
    """

    first: str
    last: str
    links: int
    log10_before: float
    log10_after: float
    kind: str = ""
    source: str | None = None

    @property
    def log10_gain(self) -> float:
        """What the step does, in decades; −inf where nothing is left."""
        return difference(self.log10_after, self.log10_before)


@dataclass(frozen=True, slots=True)
class Share:
    """What all links of one kind do together.

    Attributes:
        kind: Class of the module that a link stands for, or name of its op.
        links: How many there are.
        log10_gain: Sum of their gains, in decades.
    """

    kind: str
    links: int
    log10_gain: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Where the gradient is lost and gained on its way from the loss to the input.

    Attributes:
        steps: In the direction of flow.
        level: What a link stands for: ``"module"`` or ``"block"``.
        links: Number of links before runs of neighbours were joined.
        shares: The same gain split by kind of layer, largest loss first.
    """

    steps: tuple[Step, ...]
    level: str
    links: int
    shares: tuple[Share, ...]

    @property
    def total(self) -> float:
        """End-to-end gain in decades."""
        if not self.steps:
            return 0.0
        return difference(self.steps[-1].log10_after, self.steps[0].log10_before)


def waterfall(flow: Flow, limit: int) -> Waterfall:
    """The gain budget as at most about ``limit`` steps, in the direction of the gradient.

    By module if that fits, else by block; what is still too long is joined to
    runs (:func:`join`). The steps always add up to the whole chain.
    """
    links = flow.budget("module", Role.ACTIVATION_GRADIENT).links
    level, kinds = "module", kinds_by_path(flow)
    shares = _shares(links, kinds)
    if len(links) > limit:
        blocks = group(links, block_of)
        if len(blocks) < len(links):
            links, level = blocks, "block"
    steps = [_step(link, kinds) for link in reversed(links)]
    return Waterfall(join(steps, limit), level, len(links), shares)


def join(steps: Sequence[Step], limit: int) -> tuple[Step, ...]:
    """Join neighbours into runs so that at most ``limit`` steps are left.

    A run grows while its Σ|gain| stays within a share of the whole. So a uniform
    chain falls into equal runs, and a step that takes much stands alone. Any two
    neighbouring runs exceed the share together, hence a share of 2/limit is
    always enough; the smallest sufficient one of 1/limit … 2/limit is taken.
    (Steps to or from zero stand alone too and may add to the number.)
    """
    if len(steps) <= limit:
        return tuple(steps)
    total = math.fsum(_size(step) for step in steps)
    smallest = max(limit // 2, 1)
    for parts in range(limit, smallest - 1, -1):
        runs = _runs(steps, total / parts)
        if len(runs) <= limit:
            break
    return runs


def end_to_end(flow: Flow) -> float | None:
    """log10 of ‖∂L/∂first op‖ / ‖∂L/∂last op‖ along the chain; None for a chain of fewer than two ops."""
    chain = flow.chain(Role.ACTIVATION_GRADIENT)
    if len(chain) < 2:
        return None
    first, last = (-math.inf if row.stats is None else row.stats.log10_norm for row in (chain[0], chain[-1]))
    return difference(first, last)


def difference(a: float, b: float) -> float:
    """Difference a − b of two logs; 0 where both are equal, those of zero (−inf) included."""
    return 0.0 if a == b else a - b


def _step(link: Link, kinds: Mapping[str, str]) -> Step:
    kind = _kind(link, kinds)
    return Step(link.place, link.place, 1, link.log10_norm_out, link.log10_norm_in, kind, link.source)


def kinds_by_path(flow: Flow) -> dict[str, str]:
    """Module path → class of the module."""
    return {row.site.path: row.module_type for row in flow.select(Role.ACTIVATION_GRADIENT)}


def _kind(link: Link, kinds: Mapping[str, str]) -> str:
    if link.path == LOSS_PATH:
        return "loss"
    return kinds.get(link.path) or (link.ops[0] if len(link.ops) == 1 else "")


def _shares(links: Sequence[Link], kinds: Mapping[str, str]) -> tuple[Share, ...]:
    gains: dict[str, list[float]] = {}
    for link in links:
        gains.setdefault(_kind(link, kinds) or "other", []).append(link.log10_gain)
    shares = (Share(kind, len(parts), _sum(parts)) for kind, parts in gains.items())
    return tuple(sorted(shares, key=lambda share: share.log10_gain))


def _sum(values: Sequence[float]) -> float:
    """Exact sum; NaN where a loss of everything meets a gain from nothing."""
    return math.nan if {math.inf, -math.inf} <= set(values) else math.fsum(values)


def _runs(steps: Sequence[Step], share: float) -> tuple[Step, ...]:
    """Neighbours joined while the sum of their sizes is at most ``share``."""
    runs: list[Step] = []
    size = math.inf
    for step in steps:
        if size + _size(step) <= share and math.isfinite(step.log10_gain):
            joined, size = runs[-1].links + step.links, size + _size(step)
            runs[-1] = replace(
                runs[-1], last=step.last, links=joined, log10_after=step.log10_after, kind="", source=None
            )
        else:
            runs.append(step)
            size = _size(step) if math.isfinite(step.log10_gain) else math.inf
    return tuple(runs)


def _size(step: Step) -> float:
    """How much a step changes; a step to or from zero counts nothing here, for it stands alone anyway."""
    return abs(step.log10_gain) if math.isfinite(step.log10_gain) else 0.0
