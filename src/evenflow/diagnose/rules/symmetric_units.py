"""EF303: units of a layer that are equal, get equal gradients, and so stay equal for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import count, listing, percent
from evenflow.flow import LOSS_PATH, Flow, Role, Row

HALF = Threshold(
    0.5,
    "share of a layer's units whose weights, and the gradients of these, equal another unit's",
    "a judgement: the layer then has at most three quarters of its units to itself; random weights have no "
    "equal rows",
)


@final
class SymmetricUnits(Rule):
    """Compares the rows of every weight, and of its gradient."""

    code = "EF303"
    name = "symmetric_units"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Units of a hidden layer are copies of each other, and training keeps them so."
    causes = (CauseName.ZERO_INIT_SYMMETRY,)
    thresholds = (HALF,)
    page = Page(
        what="""\
A wide layer computes the same thing over and over. However many units it has, it can do no
more than one of them, and the loss stalls at what so narrow a network can reach.""",
        why="""\
The weights were all set to the same number: zeros, ones, a constant. Units that start alike
and are read alike get the same gradient, so every optimizer moves them alike.""",
        mathematics="""\
Let units i, j of a layer have w_i = w_j and outgoing weights v_i = v_j. Then h_i = h_j and
δ_i = δ_j, so ∂L/∂w_i = δ_i xᵀ = ∂L/∂w_j, and likewise for v: the symmetry is preserved by
gradient descent. If only the incoming weights agree, δ differs and the first step parts
the units.""",
        detection="""\
A unit counts if its row of weights *and* its row of the gradient equal another unit's, but
for rounding. So one layer of equal weights between random ones is silent, and so is
dropout, which parts units too. Rows of gradient that are zero (dead units) do not count,
nor do output layers, whose rows for classes that this batch lacks are alike. It is an
*error* if it holds for all units of a layer.""",
        remedies="""\
Initialise weights at random (`kaiming_normal_`, `xavier_normal_`, or PyTorch's default);
constants are for biases and gains.""",
        references=(
            "Rumelhart, Hinton, Williams, Learning internal representations by error propagation, 1986 "
            "(symmetry breaking).",
            "Goodfellow, Bengio, Courville, Deep learning, 2016, section 8.4.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        gradients = {row.site.path: row for row in flow.select(Role.PARAMETER_GRADIENT)}
        weights = _matrices(flow)
        if weights and all(row.twin_fraction is None for row in gradients.values()):
            raise CannotJudgeError("the Flow does not compare the rows of weights and gradients")
        hidden = {
            row.site.path
            for row in graph.gradients.values()
            if graph.is_layer(row) and row.site.path != LOSS_PATH and graph.is_hidden(row)
        }
        found = [
            (share, row)
            for row in weights
            if row.site.path.rpartition(".")[0] in hidden
            and (share := _share(row, gradients.get(row.site.path))) > HALF.value
        ]
        if found:
            yield _finding(graph, found)


def _matrices(flow: Flow) -> list[Row]:
    """Weights of several units."""
    return [row for row in flow.select(Role.PARAMETER) if len(row.shape) >= 2 and row.shape[0] > 1]


def _share(weight: Row, gradient: Row | None) -> float:
    """Share of units that equal another one in weights and gradients."""
    if gradient is None or gradient.twin_fraction is None or "Embedding" in weight.module_type:
        return 0.0
    zero = weight.stats is not None and weight.stats.mean_square == 0.0
    return min(1.0 if zero else weight.twin_fraction or 0.0, gradient.twin_fraction)


def _finding(graph: OpGraph, found: list[tuple[float, Row]]) -> Finding:
    share, row = max(found, key=lambda one: one[0])
    names = listing([other.site.path for _, other in found])
    cause = Cause(
        CauseName.ZERO_INIT_SYMMETRY,
        1.0,
        f"{names}: {percent(share)} of the rows equal another row, and so do their gradients.",
    )
    module = row.site.path.rpartition(".")[0]
    source = next((one.source for one in graph.gradients.values() if one.site.path == module), None)
    return Finding(
        code=SymmetricUnits.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.ERROR if share == 1.0 else Severity.WARNING,
        site=module,
        message=f"The {count(row.shape[0], 'unit')} of {module or 'the model'} are copies of each other and "
        "get equal gradients."
        if share == 1.0
        else f"{percent(share)} of the {row.shape[0]} units of {module or 'the model'} are copies of others "
        "and get equal gradients.",
        source=source,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, share, HALF.value),),
        remedies=remedies([cause]),
    )
