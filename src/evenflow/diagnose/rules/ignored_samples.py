"""EF507: samples of the batch that the loss does not read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule
from evenflow.diagnose.text import percent, place, site
from evenflow.flow import LOSS_PATH, Flow, Row

_PICKS = frozenset({"slice", "select", "index", "index_select", "masked_select", "gather"})


@final
class IgnoredSamples(Rule):
    """Looks for a loss that picks some samples of the output and leaves the others."""

    code = "EF507"
    name = "ignored_samples"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The loss reads a part of the batch only; the other samples teach nothing."
    causes = (CauseName.WRONG_LOSS_OR_OUTPUT,)
    thresholds = ()
    page = Page(
        what="""\
Training is slower and noisier than the batch size promises: part of every batch is computed
and thrown away.""",
        why="""\
The loss slices or indexes the output: a leftover of debugging (`output[:8]`), the wrong axis,
or, on purpose, a mask (labelled nodes of a graph, masked tokens).""",
        mathematics="""\
Samples that the loss does not read have the gradient zero at the output. With a share r read,
the variance of the gradient estimate is 1/r times that of the whole batch.""",
        detection="""\
An op of the loss picks from the first axis of the model's output, and just the share of
samples that is left over has a gradient of exactly zero. Since masks do so with good reason,
it is a *note*, never more. There are no thresholds.""",
        remedies="""\
If it is not meant, give the loss the whole output. If it is, leave out of the batch what the
loss does not read, where that is possible, and save its cost.""",
        references=("Bottou, Curtis, Nocedal, Optimization methods for large-scale machine learning, 2018.",),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        for row in graph.gradients.values():
            share = _left_over(graph, row)
            if share:
                yield _finding(row, share)


def _left_over(graph: OpGraph, row: Row) -> float:
    """Share of the samples of an output that the loss picks nothing of."""
    uses = [graph.gradients[order] for order in graph.consumers[row.order]]
    if row.site.path == LOSS_PATH or not uses or row.stats is None or not row.shape or row.shape[0] < 2:
        return 0.0
    rest = row.shape[1:]
    picks = [use for use in uses if use.site.path == LOSS_PATH and use.site.op in _PICKS]
    if len(picks) < len(uses) or any(use.shape[1:] != rest for use in picks):
        return 0.0
    zeros = row.stats.zero_fraction
    left = 1.0 - sum(use.shape[0] for use in picks if use.shape) / row.shape[0]
    return left if zeros is not None and left > 0.0 and math.isclose(zeros, left, rel_tol=1e-9) else 0.0


def _finding(row: Row, share: float) -> Finding:
    text = f"{percent(share)} of the {row.shape[0]} samples have a gradient of exactly zero at {place(row)}."
    cause = Cause(CauseName.WRONG_LOSS_OR_OUTPUT, 1.0, text)
    return Finding(
        code=IgnoredSamples.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.NOTE,
        site=site(row),
        message=f"The loss leaves {percent(share)} of the samples of {place(row)} unread.",
        source=row.source,
        causes=(cause,),
        evidence=(Evidence(text, share, 0.0),),
    )
