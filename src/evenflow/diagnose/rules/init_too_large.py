"""EF302: weights so large that signals grow by orders of magnitude on their way to the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.attribution import DEEP, DEPTH_AT_LEAST, HALVES, in_a_row, share_of_depth
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, listing, place, site
from evenflow.diagnose.way import Way, in_steps, ways
from evenflow.diagnose.weights import LayerGain, gains
from evenflow.flow import Flow

GROWN = Threshold(
    3.0,
    "decades by which the gains of layers in a row exceed what suits them",
    "as in EF102: the size of the outputs, and with it that of the gradients, is a thousand times too large",
)


@final
class InitTooLarge(Rule):
    """Adds up by what the weights along each way are too large."""

    code = "EF302"
    name = "init_too_large"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "The weights are so large that signals grow by orders of magnitude from layer to layer."
    causes = (CauseName.INIT_TOO_LARGE, CauseName.DEPTH_WITHOUT_SKIP)
    thresholds = (GROWN, HALVES, DEPTH_AT_LEAST, DEEP)
    page = Page(
        what="""\
The outputs of the untrained network are in the thousands, the first loss is far above
that of guessing, and the first steps throw the weights anywhere.""",
        why="""\
The standard deviation of the weights was chosen without regard to their number: normal
draws of unit variance are a gain of √fan_in, 22 for 512 inputs.""",
        mathematics="""\
A layer with fan-in N multiplies the size of its input by g = √N · RMS(W); behind a
rectifier √2 keeps it as it was, behind tanh 1. The gains of layers in a row multiply,
until a squashing function bounds the signal (then it saturates: EF201) or a normalisation
takes its scale away.""",
        detection="""\
Along each way from the data to the loss log10(g / g_made for) is added up over layers in a
row, from one squashing function to the next. Layers before a normalisation have no gain
(unit variance under BatchNorm or LayerNorm is no fault). It reads weights alone.""",
        remedies="""\
He initialisation (`kaiming_normal_`) for rectifiers, Glorot (`xavier_normal_`) for tanh; a
normalisation before each activation; clip the gradient until then.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.6.",
            "He, Zhang, Ren, Sun, Delving deep into rectifiers, ICCV 2015.",
            "Hanin, Rolnick, How to start training: the effect of initialization and architecture, "
            "NeurIPS 2018.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        worst: tuple[float, Way, list[LayerGain]] | None = None
        for way in (in_steps(graph, one) for one in ways(graph)):
            for row in _rows(list(gains(graph, way))):
                grown = sum(layer.log10_excess for layer in row)
                if grown > GROWN.value and (worst is None or grown > worst[0]):
                    worst = (grown, way, row)
        if worst is not None:
            yield _finding(graph, *worst)


def _rows(layers: list[LayerGain]) -> Iterator[list[LayerGain]]:
    """Layers in a row, parted where a squashing function bounds the signal."""
    row = layers[:1]
    for _, layer in pairwise(layers):
        if layer.behind in ops.SQUASHING_SLOPE:
            yield row
            row = []
        row.append(layer)
    yield row


def _finding(graph: OpGraph, grown: float, way: Way, layers: list[LayerGain]) -> Finding:
    large = sorted(layers, key=lambda layer: -layer.log10_excess)
    mean = grown / len(layers)
    depth = share_of_depth(way, grown)
    text = (
        f"The weights of {count(len(layers), 'layer')} have {10.0**mean:.2g} times the gain that suits them."
    )
    causes = [Cause(CauseName.INIT_TOO_LARGE, 1.0 - depth, text)]
    if depth:
        causes.append(Cause(CauseName.DEPTH_WITHOUT_SKIP, depth, in_a_row(way)))
    causes.sort(key=lambda cause: -cause.confidence)
    evidence = [
        Evidence(
            f"Gains (√fan_in · RMS) exceed what suits them by {grown:.1f} decades in all (alarm above "
            f"{GROWN.value:.0f}).",
            grown,
            GROWN.value,
        ),
        Evidence(
            "Largest against what suits them: "
            + listing([f"{place(one.row)} ({one.gain:.2g}, {one.made_for:.2g} suits it)" for one in large])
            + "."
        ),
    ]
    end = graph.activations.get(layers[-1].row.order)
    if end is not None and end.stats is not None:
        evidence.append(Evidence(f"The output of {place(end)} has an RMS of {end.stats.rms:.2g}."))
    return Finding(
        code=InitTooLarge.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.WARNING,
        site=site(large[0].row),
        message=f"The weights are too large: signals grow by a factor of {factor(grown)} over "
        f"{count(len(layers), 'layer')}.",
        source=large[0].row.source,
        causes=tuple(causes),
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )
