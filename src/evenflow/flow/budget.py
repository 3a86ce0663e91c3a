"""The gain budget: who ate the gradient.

For each link of the chain (see :mod:`evenflow.flow.chain`)

    log10_gain = log10 ‖∂L/∂input‖ − log10 ‖∂L/∂output‖

with Euclidean norms over the whole batch. A link of gain −1 lets a tenth of the
gradient through. The gains add up to ``total``, so a budget is a waterfall with
a sum; links of one module, or of one block, add up to that module's share. The
same table for activations goes forwards: norm of the output over norm of the
input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from evenflow.flow.chain import between
from evenflow.flow.site import Role
from evenflow.flow.table import Row

Level = Literal["op", "module", "block"]


@dataclass(frozen=True, slots=True)
class Link:
    """One step of the budget.

    Attributes:
        place: Site label, module path or block path, by the budget's level.
        path: Module path of its op, or the deepest module that holds all its ops.
        ops: Names of the ops inside, in forward order.
        log10_norm_in: log10 of the norm at the link's input.
        log10_norm_out: log10 of the norm at its output.
        log10_gain: What the link does to the norm in the direction of flow:
            input minus output for gradients, output minus input for activations.
        source: The user's line of its last op, if known.
    """

    place: str
    path: str
    ops: tuple[str, ...]
    log10_norm_in: float
    log10_norm_out: float
    log10_gain: float
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Gains along the chain, in forward order.

    Attributes:
        role: ``activation_gradient`` (backwards) or ``activation`` (forwards).
        level: What one link stands for.
        start: Label of the first tensor of the chain.
        end: Label of the last one.
        links: The steps between; empty for a chain of one op.
    """

    role: str
    level: Level
    start: str
    end: str
    links: tuple[Link, ...]

    @property
    def total(self) -> float:
        """Sum of all gains: log10 of the end-to-end ratio of norms."""
        gains = [link.log10_gain for link in self.links]
        if math.inf in gains and -math.inf in gains:  # nothing in between, but something at both ends
            gain = _difference(self.links[0].log10_norm_in, self.links[-1].log10_norm_out)
            return gain if self.role == Role.ACTIVATION_GRADIENT else -gain
        return math.fsum(gains)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)

    def __len__(self) -> int:
        return len(self.links)


def op_links(chain: Sequence[Row], graph: dict[int, Row], *, backward: bool) -> tuple[Link, ...]:
    """One link for each pair of neighbours on the chain.

    Args:
        chain: Rows of one role along the chain, in forward order.
        graph: All rows of that role, by order.
        backward: Whether the quantity flows from the loss to the input.
    """
    inputs = {order: row.inputs for order, row in graph.items()}
    links = []
    for first, last in pairwise(chain):
        inside = [graph[order] for order in between(inputs, first.order, last.order)] or [last]
        norm_in, norm_out = _log10_norm(first), _log10_norm(last)
        path = common_path([row.site.path for row in inside])
        links.append(
            Link(
                place=last.site.label if len(inside) == 1 else path,
                path=path,
                ops=tuple(row.site.op for row in inside),
                log10_norm_in=norm_in,
                log10_norm_out=norm_out,
                log10_gain=_difference(norm_in, norm_out) if backward else _difference(norm_out, norm_in),
                source=last.source,
            )
        )
    return tuple(links)


def group(links: Sequence[Link], place_of: Callable[[str], str]) -> tuple[Link, ...]:
    """Join neighbouring links that share a place; their gains add.

    Args:
        links: Links of single ops, in forward order.
        place_of: From a link's module path to its place at the new level.
    """
    groups: list[Link] = []
    for link in links:
        place = place_of(link.path)
        if groups and groups[-1].place == place:
            last = groups[-1]
            groups[-1] = replace(
                last,
                path=common_path([last.path, link.path]),
                ops=last.ops + link.ops,
                log10_norm_out=link.log10_norm_out,
                log10_gain=last.log10_gain + link.log10_gain,
                source=link.source or last.source,
            )
        else:
            groups.append(replace(link, place=place))
    return tuple(groups)


def block_of(path: str) -> str:
    """The block of a module path: everything up to the first number, else its first part.

    ``transformer.h.3.attn`` → ``transformer.h.3``; ``encoder.norm`` → ``encoder``.
    """
    parts = path.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return parts[0]


def common_path(paths: Sequence[str]) -> str:
    """The deepest module path that contains all of ``paths``."""
    shared = paths[0].split(".") if paths[0] else []
    for path in paths[1:]:
        parts = path.split(".") if path else []
        matching = 0
        while matching < min(len(shared), len(parts)) and shared[matching] == parts[matching]:
            matching += 1
        shared = shared[:matching]
    return ".".join(shared)


def _log10_norm(row: Row) -> float:
    return row.stats.log10_norm if row.stats is not None else -math.inf


def _difference(a: float, b: float) -> float:
    """Difference a − b, where nothing can be lost from a norm that is already zero."""
    return 0.0 if a == b else a - b
