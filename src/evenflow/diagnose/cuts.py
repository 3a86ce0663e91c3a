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

from collections.abc import Iterable, Iterator
from enum import StrEnum

from evenflow.diagnose.graph import OpGraph
from evenflow.flow import Flow, Role, Row, Status


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
