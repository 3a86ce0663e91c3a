"""EF506: every output is compared with every target, because their shapes broadcast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.data import is_distance
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule
from evenflow.diagnose.text import place, site
from evenflow.flow import LOSS_PATH, Flow, Role, Row


@final
class BroadcastLoss(Rule):
    """Looks for a loss that spreads [B, 1] against [B] to [B, B]."""

    code = "EF506"
    name = "broadcast_loss"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The loss compares every output with every target, because shapes [B, 1] and [B] broadcast."
    causes = (CauseName.WRONG_LOSS_OR_OUTPUT,)
    thresholds = ()
    page = Page(
        what="""\
The loss falls to the variance of the targets and stays there; all predictions become the mean
target, whatever the model.""",
        why="""\
The model gives [B, 1] and the targets are [B], or the other way round. Subtracting them does
not fail: broadcasting makes a [B, B] table of all differences. PyTorch warns in `mse_loss`,
not where the difference is spelled out.""",
        mathematics="""\
Σ_ij (ŷ_i − y_j)² = B Σ_i (ŷ_i − ȳ)² + B Σ_j (y_j − ȳ)²: its smallest value is reached when
every ŷ_i is the mean ȳ, so the inputs do not matter.""",
        detection="""\
An op of the loss that measures a distance to data (a target, not another output of the model)
and whose table is [B, B] while the output has B entries. Losses over pairs of outputs are left
alone. There are no thresholds; it is a *warning*.""",
        remedies="""\
Give both the same shape: `output.squeeze(-1)`, or `target.unsqueeze(-1)`. Python's `-Werror`
turns PyTorch's warning into an error.""",
        references=("PyTorch documentation: broadcasting semantics; torch.nn.functional.mse_loss.",),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        targets = {row.order: row for row in flow.select(Role.DATA)}
        for row in graph.gradients.values():
            if row.site.path == LOSS_PATH and (pair := _spread(graph, row, targets)) is not None:
                yield _finding(*pair)


def _spread(graph: OpGraph, row: Row, targets: dict[int, Row]) -> tuple[Row, Row] | None:
    """Output and table, if this op spreads the one against a target to the other."""
    sources = [source for source in graph.sources(row) if source.order in graph.gradients]
    if len(sources) != 1 or len(row.shape) < 2 or row.shape[-1] != row.shape[-2] or row.shape[-1] < 2:
        return None
    (output,) = sources
    size = row.shape[-1]
    is_column = output.stats is not None and output.stats.count == size and size in output.shape
    if not is_column:
        return None
    if row.site.op == "expand":
        uses = [graph.gradients[order] for order in graph.consumers[row.order]]
        compared = any(is_distance(graph, use) and _reads_target(graph, use, targets) for use in uses)
    else:
        compared = row.order in targets and is_distance(graph, row)
    return (output, row) if compared else None


def _reads_target(graph: OpGraph, row: Row, targets: dict[int, Row]) -> bool:
    """Whether an op reads a target, be it spread to the table's shape as well."""
    return row.order in targets or any(
        source.site.op == "expand" and source.order in targets
        for source in graph.sources(graph.activations.get(row.order, row))
    )


def _finding(output: Row, table: Row) -> Finding:
    size = table.shape[-1]
    text = f"{place(output)} has {size} entries and the loss a table of {size} × {size} differences."
    cause = Cause(CauseName.WRONG_LOSS_OR_OUTPUT, 1.0, text)
    return Finding(
        code=BroadcastLoss.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=site(output),
        message=f"The loss compares each of {size} outputs with all {size} targets: it teaches their mean "
        "alone.",
        source=table.source or output.source,
        causes=(cause,),
        evidence=(Evidence(text),),
        remedies=("Give output and target the same shape: output.squeeze(-1), or target.unsqueeze(-1).",),
    )
