"""Which axis a softmax was taken over, by its figures alone.

Probabilities that add up to one over C classes have the mean 1/C, whatever they are. The mean of
their logarithms is −ln C at most (Jensen's inequality), and where all logits lie within ±a it is
−ln C − 2a at least, and −ln C − a²/2 (Hoeffding's lemma). A softmax of [samples, classes] whose
figures are not so adds up to one over the samples: the answer to one sample then depends on the
others in its batch.
"""

from __future__ import annotations

import math

from evenflow.diagnose import ops
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.rule import Threshold
from evenflow.flow import Row

ROUNDING = Threshold(
    0.01,
    "relative distance from what a softmax over the classes gives, from which it is one over the samples",
    "bfloat16 rounds each number by .004 at most (8 bits); twice that, and a little",
)


def over_samples(graph: OpGraph, softmax: Row) -> str | None:
    """Proof that a softmax, or log-softmax, of [samples, classes] is one over the samples; else None."""
    op, activation = softmax.site.op, graph.activations.get(softmax.order)
    if op not in (*ops.SOFTMAX, "_log_softmax") or len(softmax.shape) != 2:
        return None
    stats = activation.stats if activation is not None else None
    if stats is None or stats.nonfinite_count or not stats.count:
        return None
    if softmax.half_width is not None:  # a prediction's figures are near, and prove nothing
        return None
    samples, classes = softmax.shape
    if classes < 2 or samples == classes:
        return None
    if op != "_log_softmax":
        if abs(stats.mean * classes - 1.0) <= ROUNDING.value:
            return None
        return f"Probabilities of {classes} classes have the mean {1 / classes:.2g}, not {stats.mean:.2g}."
    logits = next((source.stats for source in graph.sources(softmax)), None)
    if logits is None or logits.abs_max is None:
        return None
    least = math.log(classes)
    most = least + min(2.0 * logits.abs_max, logits.abs_max**2 / 2.0)
    if least * (1.0 - ROUNDING.value) <= -stats.mean <= most * (1.0 + ROUNDING.value):
        return None
    return (
        f"With logits up to {logits.abs_max:.2g}, log-probabilities of {classes} classes have a mean between "
        f"{-most:.2f} and {-least:.2f}; these have {stats.mean:.2f}."
    )
