"""EF405: a deep network without any normalisation, whose signals change their size on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import factor, place, site
from evenflow.diagnose.way import Way, in_steps, ways
from evenflow.flow import LOSS_PATH, Flow, Row

DEEP = Threshold(
    10.0,
    "layers (or blocks) from which a network without normalisation is looked at",
    "a judgement: VGG nets of 11 and 13 layers were trained without one, deeper ones from these "
    "(Simonyan & Zisserman 2015)",
)
DRIFT = Threshold(
    1.0,
    "decades between the sizes of the first and the last hidden layer's output",
    "a judgement: a network that keeps its signals in place stays within a factor of ten",
)

CHANCE = Threshold(
    2.0,
    "standard deviations of what finite width alone causes; nets in which they make a decade are left out",
    "Hanin 2018: log ‖g‖² ~ N(−β/2, β) with β = Σ 5/width; two standard deviations hold 95 % of draws",
)


@final
class MissingNormalization(Rule):
    """Compares the sizes of the first and the last hidden layer where nothing holds them."""

    code = "EF405"
    name = "missing_normalization"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "A deep network has no normalisation, and its signals drift in size from layer to layer."
    causes = (CauseName.MISSING_NORMALIZATION,)
    thresholds = (DEEP, DRIFT, CHANCE)
    page = Page(
        what="""\
Training depends on the initialisation and on a small learning rate; what works at ten layers
fails at twenty.""",
        why="""\
Nothing keeps the scale of activations in place, so errors of initialisation multiply from
layer to layer, and so do those that training adds later.""",
        mathematics="""\
Without normalisation log q_l, with q_l the mean square of layer l's output, adds up
log(σ_w² E φ²(√q z)/q) per layer. With one, q = 1 behind each, whatever the weights, and the
gradient at the weights scales as 1/‖W‖, which lets steps grow smaller by themselves
(Ioffe & Szegedy 2015; van Laarhoven 2017).""",
        detection="""\
Networks of ten layers or more of which no op on the gradient's way, nor in its blocks, is a
normalisation: the sizes of the first and the last hidden layer's output are compared. A
drift of a decade is a *note*, unless the net is so narrow that chance makes one. Whether
the gradient suffers is said by EF101, EF102, EF301 and EF302.""",
        remedies="""\
BatchNorm for images, LayerNorm or RMSNorm for sequences, before each activation; or an
initialisation that does without: He with scaled branches, Fixup, SkipInit.""",
        references=(
            "Ioffe, Szegedy, Batch normalization, ICML 2015.",
            "Ba, Kiros, Hinton, Layer normalization, 2016.",
            "Simonyan, Zisserman, Very deep convolutional networks for large-scale image recognition, "
            "ICLR 2015, section 3.1.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        if any(_is_norm(row) for row in graph.gradients.values()):
            return
        found = [
            (drift, way)
            for way in (in_steps(graph, one) for one in ways(graph))
            if way.layers + 1 >= DEEP.value
            and not _left_to_chance(way)
            and (drift := _drift(graph, way)) is not None
        ]
        drift, way = max(found, key=lambda one: abs(one[0]), default=(0.0, None))
        if way is not None and abs(drift) > DRIFT.value:
            yield _finding(graph, way, drift)


def _is_norm(row: Row) -> bool:
    return row.site.path != LOSS_PATH and row.site.op in ops.NORMS | ops.MEASURES_SCALE


def _hidden(graph: OpGraph, way: Way) -> list[Row]:
    """Outputs of the layers and blocks before the last one."""
    orders = [way.first.order, *(step.output.order for step in way.judged if step.function)]
    return [graph.activations[order] for order in orders if order in graph.activations]


def _left_to_chance(way: Way) -> bool:
    """Whether a net is so narrow and deep that one draw of its weights may drift as much by chance alone."""
    low, high = way.usual(CHANCE.value)
    return (high - low) / 2.0 > DRIFT.value


def _drift(graph: OpGraph, way: Way) -> float | None:
    sizes = [row.stats.log10_rms for row in _hidden(graph, way) if row.stats is not None]
    drift = sizes[-1] - sizes[0] if len(sizes) > 1 else math.nan
    return drift if math.isfinite(drift) else None


def _finding(graph: OpGraph, way: Way, drift: float) -> Finding:
    last = _hidden(graph, way)[-1]
    verb = "grows" if drift > 0.0 else "shrinks"
    cause = Cause(
        CauseName.MISSING_NORMALIZATION,
        1.0,
        f"No op on the way is a normalisation, and the signal {verb} by {abs(drift):.1f} decades.",
    )
    return Finding(
        code=MissingNormalization.code,
        symptom=Symptom.EXPLODING_GRADIENT if drift > 0.0 else Symptom.VANISHING_GRADIENT,
        severity=Severity.NOTE,
        site=site(last),
        message=f"Nothing holds the size of the signal, which {verb} by a factor of {factor(drift)} from "
        f"{place(way.first)} to {place(last)}.",
        source=last.source,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, abs(drift), DRIFT.value),),
    )
