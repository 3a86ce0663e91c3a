"""Heads that no loss asks for: the gradient of their weights is exactly zero at every step.

A model with several tasks gives their outputs side by side, and a loss that leaves one of
them out, or adds it as a number (``.item()``, ``.detach()``), still sends a gradient back
through the tensor that holds all: exact zeros for the part that it did not read. So the
parameters of that head are "reached", and no optimizer moves them.

Small gradients are no zeros, and zeros have other reasons below an activation function; so
only layers count that nothing but the loss reads, and at which the gradient is zero as it comes in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.history.history import History
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.text import listing
from evenflow.diagnose.zero_gradient import is_zero
from evenflow.flow import LOSS_PATH, Flow, Role

SURE = 0.8
"""Confidence in the suspect (a judgement): the zeros are exact, but the head may be left out on purpose."""


def unasked_heads(history: History, role: str) -> Cause | None:
    """Whether some output layers, but not all of them, got a gradient of exactly zero throughout.

    Only where the first batch was measured op by op: a stored run alone does not tell what is read by
    the loss.
    """
    names = history.parameters(role, matrices=True)
    sizes = history.of(Role.PARAMETER_GRADIENT, names)
    silent = {
        name.rpartition(".")[0]
        for name, column in zip(names, sizes.T, strict=True)
        if np.isfinite(column).any() and not np.nan_to_num(column, nan=0.0, posinf=1.0).any()
    }
    heads = {path for flow in history.measured.values() for path in _unread(flow)} & silent
    if not heads or len(silent) == len(names):
        return None
    text = (
        f"{listing(sorted(heads))} got a gradient of exactly zero at every sampled step: the loss reads the "
        "tensor that holds their output and does not depend on their part of it."
    )
    return Cause(CauseName.FROZEN_OR_DETACHED, SURE, text)


def _unread(flow: Flow) -> Iterator[str]:
    """Modules whose output gets exact zeros from the loss, with no layer or activation function between."""
    try:
        graph = op_graph(flow)
    except CannotJudgeError:
        return
    for row in graph.gradients.values():
        if not graph.is_layer(row) or row.site.path == LOSS_PATH or graph.is_hidden(row) or not is_zero(row):
            continue
        above = (graph.gradients[order].site.op for order in graph.route(row.order)[1:])
        if not any(op in ops.RECTIFIERS or op in ops.SQUASHING_SLOPE or op in ops.SMOOTH for op in above):
            yield row.site.path
