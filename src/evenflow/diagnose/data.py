"""What comes from outside: the batch that layers read, and the target that the loss reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evenflow.diagnose.graph import OpGraph
from evenflow.flow import LOSS_PATH, Flow, Role, Row, Stats

SQUARED = frozenset({"mse_loss"})
"""Squared errors in one op."""
DISTANCES = SQUARED | {"l1_loss", "smooth_l1_loss", "huber_loss"}
"""Losses that measure how far an output is from a target, in one op."""
CLASSIFIED = frozenset({"nll_loss_forward", "nll_loss2d_forward"})
"""Cross-entropies of classes, in one op after the log-softmax."""
_SIZES = frozenset({"pow", "abs", "square", "mul", "log_cosh", "linalg_vector_norm", "norm"})
"""What is made of a difference to measure its size."""
_SAME = 1e-3
"""Relative difference within which two numbers of float32, half precision's rounding included, are one."""


def inputs_of_layers(flow: Flow, graph: OpGraph) -> Iterator[tuple[Row, Row]]:
    """Each layer outside the loss that reads the batch, and what it reads.

    The batch may have been through ops without gradients (a division by 255);
    what comes out of these counts.

    Yields:
        The layer's activation, and the data.
    """
    data = {row.order: row for row in flow.select(Role.DATA)}
    for order, row in graph.activations.items():
        if order not in graph.gradients or row.site.path == LOSS_PATH or not graph.is_layer(row):
            continue
        if not row.inputs and order in data:
            yield row, data[order]
        elif row.inputs and not any(source in graph.gradients for source in row.inputs):
            sources = graph.sources(row)
            if sources and not any(source.site.path in graph.owners for source in sources):
                yield row, sources[0]


def targets(flow: Flow, graph: OpGraph) -> Iterator[tuple[Row, Row]]:
    """Each op of the loss that measures a distance to a target, and the target.

    Yields:
        The op's gradient, and the target.
    """
    for data in flow.select(Role.DATA):
        row = graph.gradients.get(data.order)
        if row is not None and row.site.path == LOSS_PATH and is_distance(graph, row):
            yield row, data


def target_of_squares(flow: Flow, graph: OpGraph) -> Stats | None:
    """The target, where the loss is the mean of a squared error in one op and of nothing else; else None."""
    loss = flow.metadata.get("loss")
    for row, target in targets(flow, graph):
        value, output = graph.activations.get(row.order), output_of(graph, row)
        if row.site.op not in SQUARED or loss is None or target.stats is None:
            continue
        if value is None or value.stats is None or output is None or output.stats is None:
            continue
        is_whole = math.isclose(value.stats.mean, loss, rel_tol=_SAME)
        is_mean = loss <= (output.stats.rms + target.stats.rms) ** 2 * (1.0 + _SAME)  # a sum is larger
        if is_whole and is_mean:
            return target.stats
    return None


def cost_of_frequencies(flow: Flow, graph: OpGraph) -> float | None:
    """What giving every class as often as it comes costs, in nats; None unless the loss is one cross-entropy.

    The frequencies are those of the batch; see ``entropy`` of :class:`evenflow.flow.Row`.
    """
    loss = flow.metadata.get("loss")
    for row in graph.activations.values():
        if row.site.op not in CLASSIFIED or row.entropy is None or row.stats is None or loss is None:
            continue
        shape = next((source.shape for source in graph.sources(row)), ())
        if shape and math.isclose(row.stats.mean, loss, rel_tol=_SAME):
            return row.entropy * math.log(shape[min(1, len(shape) - 1)])
    return None


def is_distance(graph: OpGraph, row: Row) -> bool:
    """Whether an op of the loss is, or begins, a distance between output and target."""
    if row.site.op in DISTANCES:
        return True
    consumers = {graph.gradients[order].site.op for order in graph.consumers[row.order]}
    return row.site.op in ("sub", "rsub") and bool(consumers) and consumers <= _SIZES


def output_of(graph: OpGraph, row: Row) -> Row | None:
    """The activation that an op of the loss compares with its target."""
    return next((source for source in graph.sources(row) if source.order in graph.gradients), None)
