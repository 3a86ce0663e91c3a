"""What becomes of a part that no gradient comes back to: where its outputs go in spite of the cut.

Rows of activations link ops also behind ``detach`` and ``no_grad``. Followed from
the part to the first ops that gradient passed, they tell three things apart:

* *target*: the loss alone reads it (a teacher, a target network, a stop-gradient);
* *samples*: a layer reads it in one call and other data in another, or both
  stacked (a generator while its discriminator learns);
* *features*: a layer that learns has nothing else to read.

A detour through NumPy or ``torch.tensor`` leaves no link, but what comes back
has, number for number, the statistics of what went out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from evenflow.diagnose.graph import REPEATS, OpGraph
from evenflow.flow import Flow, Role, Row, Status
from evenflow.flow.chain import between


class Use(StrEnum):
    """What the other side makes of a cut-off part."""

    TARGET = "target"
    SAMPLES = "samples"
    FEATURES = "features"


def uses(flow: Flow, graph: OpGraph, part: Iterable[Row]) -> dict[Use, Row]:
    """How ops that gradient passed use the outputs of a part that it did not reach.

    Args:
        flow: The Flow.
        graph: Its ops.
        part: Activations of the part.

    Returns:
        Use → the first op that makes it; empty if nothing is read.
    """
    own = {row.order for row in part}
    behind = _behind(graph, own)
    found: dict[Use, Row] = {}
    for row in _landings(flow, graph, own, behind):
        found.setdefault(_use(flow, graph, row, behind), row)
    return found


@dataclass(frozen=True, slots=True)
class CutInTime:
    """A module that reads its own last output at every call, and never with a gradient.

    Attributes:
        path: The module's.
        calls: How often it ran.
        silent: Calls that no gradient reached.
        source: The user's line, if known.
    """

    path: str
    calls: int
    silent: int
    source: str | None


def cuts_in_time(graph: OpGraph) -> Iterator[CutInTime]:
    """The recurrences whose state is cut off between each two calls.

    Chunks of a long sequence, each with a loss of its own, are such (truncated
    backpropagation); then every call has a gradient.
    """
    calls: dict[str, dict[int, list[Row]]] = {}
    for row in graph.activations.values():
        if row.site.path in graph.owners:
            calls.setdefault(row.site.path, {}).setdefault(row.site.call, []).append(row)
    forward = {order: row.inputs for order, row in graph.activations.items()}
    for path, by_call in calls.items():
        turns = [by_call[call] for call in sorted(by_call)]
        if len(turns) >= REPEATS and all(_is_cut(graph, forward, a, b) for a, b in pairwise(turns)):
            silent = sum(not any(_is_reached(graph, row.order) for row in turn) for turn in turns)
            yield CutInTime(path, len(turns), silent, turns[0][0].source)


def _is_reached(graph: OpGraph, order: int) -> bool:
    """Whether a gradient other than zero came to an op; one that a later step alone is read sends zeros."""
    row = graph.gradients.get(order)
    return row is not None and (row.stats is None or row.stats.mean_square != 0.0)


def _is_cut(
    graph: OpGraph, forward: Mapping[int, tuple[int, ...]], before: list[Row], after: list[Row]
) -> bool:
    """Whether a call reads what the one before it gave, but sends no gradient there."""
    starts = [row.order for row in before]
    ends = [row.order for row in after]
    reads = any(between(forward, a, b) for a in starts for b in ends)
    sends = any(
        a in graph.inputs and b in graph.inputs and between(graph.inputs, a, b) for a in starts for b in ends
    )
    return reads and not sends


def _behind(graph: OpGraph, own: set[int]) -> set[int]:
    """The part and all ops without gradients that depend on it."""
    behind = set(own)
    for order in sorted(graph.activations):
        row = graph.activations[order]
        if order not in graph.gradients and not behind.isdisjoint(row.inputs):
            behind.add(order)
    return behind


def _landings(flow: Flow, graph: OpGraph, own: set[int], behind: set[int]) -> Iterator[Row]:
    """The ops with gradients that read what is behind the cut."""
    numbers = [graph.activations[order].stats for order in own]
    unseen = {
        row.order
        for row in flow.select(Role.DATA)
        if row.status is Status.DETACHED and row.stats is not None and row.stats in numbers
    }
    for order, row in graph.activations.items():
        reads = not behind.isdisjoint(row.inputs) or (order in unseen and order > min(own))
        if reads and order in graph.gradients and order not in own:
            yield row


def _use(flow: Flow, graph: OpGraph, row: Row, behind: set[int]) -> Use:
    if not graph.is_layer(row) and graph.leaves_model(row.order):
        return Use.TARGET
    if _is_stacked(flow, graph, row, behind):
        return Use.SAMPLES
    others = [
        other
        for order, other in graph.activations.items()
        if order in graph.gradients
        and order != row.order
        and (other.site.path, other.site.op, other.site.index) == (row.site.path, row.site.op, row.site.index)
        and behind.isdisjoint(other.inputs)
    ]
    return Use.SAMPLES if any(_reads_data(flow, graph, other, behind) for other in others) else Use.FEATURES


def _is_stacked(flow: Flow, graph: OpGraph, row: Row, behind: set[int]) -> bool:
    """Whether an op reads the part's outputs stacked with other data, sample upon sample."""
    if row.site.op == "cat" and _reads_data(flow, graph, row, behind):
        return _is_longer(graph, row)
    sources = [graph.activations[order] for order in row.inputs if order in behind]
    return bool(sources) and all(
        source.order not in graph.gradients and _is_stacked(flow, graph, source, behind) for source in sources
    )


def _is_longer(graph: OpGraph, row: Row) -> bool:
    """Whether an op has more samples than each of its inputs."""
    return all(source.shape and source.shape[0] < row.shape[0] for source in graph.sources(row))


def _reads_data(flow: Flow, graph: OpGraph, row: Row, behind: set[int]) -> bool:
    """Whether an op reads the batch, or something made from it by other means."""
    if any(data.order == row.order for data in flow.select(Role.DATA)):
        return True
    return any(source not in behind for source in row.inputs)
