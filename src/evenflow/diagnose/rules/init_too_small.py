"""EF301: weights so small that every layer of the network learns slowly, the best placed one too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.attribution import DEEP, DEPTH_AT_LEAST, HALVES, in_a_row, share_of_depth
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import count, factor, listing, place, site
from evenflow.diagnose.way import Way, in_steps, ways
from evenflow.diagnose.weights import LayerGain, gains
from evenflow.flow import Flow

LOST = Threshold(
    3.0,
    "decades by which the gains of all layers but the smallest one fall short of what suits them",
    "as in EF101: AutoTrainer's ratio of 1e-3; every layer's gradient is then a thousand times too small",
)


@final
class InitTooSmall(Rule):
    """Adds up what the weights along each way fall short by."""

    code = "EF301"
    name = "init_too_small"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The weights are so small that signals and gradients fade in every layer."
    causes = (CauseName.INIT_TOO_SMALL, CauseName.DEPTH_WITHOUT_SKIP)
    thresholds = (LOST, HALVES, DEPTH_AT_LEAST, DEEP)
    page = Page(
        what="""\
The outputs hardly depend on the inputs at first, and all gradients are small, also those
of the layers next to the loss, for what these read is small too. The loss stays on a
plateau for a long time, the saddle at zero, before anything happens.""",
        why="""\
The standard deviation of the weights was chosen without regard to their number: .001 or
.01 for every layer, or a default made for another activation (PyTorch's has a gain of
√(1/3) whatever follows, a rectifier needs √2).""",
        mathematics="""\
A layer with fan-in N multiplies the size of its input by g = √N · RMS(W). The gradient of
layer l's weights is proportional to the product of the gains of all *other* layers, those
before it (its input) and those behind it (its δ). So all are small if every such product
is, and the largest of them leaves out the smallest gain. What a gain should be depends on
the activation before it: √2 behind a rectifier, 1 behind tanh or at the first layer.""",
        detection="""\
Along each way from the data to the loss the shortfalls log10(g_made for / g) are added up,
the largest one left out, since a single small layer (a head, a residual branch's end)
opens by itself. Layers before a normalisation have no gain, nor do layers behind a
sigmoid, where no weights would help (EF101). It reads weights alone, so it needs neither a
loss nor a batch. Mild factors over a deep stack are shared with its depth.""",
        remedies="""\
He initialisation (`kaiming_normal_`) for rectifiers, Glorot (`xavier_normal_`) for tanh;
a normalisation before each activation. With Adam the plateau is shorter, since its steps
do not depend on the size of gradients.""",
        references=(
            "Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, "
            "AISTATS 2010.",
            "He, Zhang, Ren, Sun, Delving deep into rectifiers, ICCV 2015.",
            "Saxe, McClelland, Ganguli, Exact solutions to the nonlinear dynamics of learning in deep "
            "linear neural networks, ICLR 2014 (the plateau at zero).",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        worst: tuple[float, Way, list[LayerGain]] | None = None
        for way in (in_steps(graph, one) for one in ways(graph)):
            judged = [layer for layer in gains(graph, way) if _can_help(layer)]
            lost = _lost(judged)
            if lost > LOST.value and (worst is None or lost > worst[0]):
                worst = (lost, way, judged)
        if worst is not None:
            yield _finding(*worst)


def _can_help(layer: LayerGain) -> bool:
    """Whether other weights would keep the gradient: not behind a function of slope below 1, nor zeros."""
    return math.isfinite(layer.log10_excess) and ops.SQUASHING_SLOPE.get(layer.behind, 1.0) >= 1.0


def _lost(layers: Sequence[LayerGain]) -> float:
    """Decades by which all gains but the smallest fall short."""
    short = [-layer.log10_excess for layer in layers]
    return sum(short) - max(short) if len(short) > 1 else 0.0


def _finding(lost: float, way: Way, layers: list[LayerGain]) -> Finding:
    short = sorted(layers, key=lambda layer: layer.log10_excess)
    mean = sum(layer.log10_excess for layer in layers) / len(layers)
    worst = listing(
        [f"{place(layer.row)} ({layer.gain:.2g}, {layer.made_for:.2g} suits it)" for layer in short]
    )
    text = (
        f"The weights of {count(len(layers), 'layer')} have {10.0**mean:.2g} times the gain that suits them."
    )
    depth = share_of_depth(way, lost)
    causes = [Cause(CauseName.INIT_TOO_SMALL, 1.0 - depth, text)]
    if depth:
        causes.append(Cause(CauseName.DEPTH_WITHOUT_SKIP, depth, in_a_row(way)))
    causes.sort(key=lambda cause: -cause.confidence)
    return Finding(
        code=InitTooSmall.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.WARNING,
        site=site(short[0].row),
        message=f"The weights are too small: even the best placed layer gets a gradient {factor(lost)} times "
        "smaller than it would with weights that suit their activations.",
        source=short[0].row.source,
        causes=tuple(causes),
        evidence=(
            Evidence(
                f"Gains (√fan_in · RMS) fall short by {lost:.1f} decades in all, the smallest one left out "
                f"(alarm above {LOST.value:.0f}).",
                lost,
                LOST.value,
            ),
            Evidence(f"Smallest against what suits them: {worst}."),
        ),
        remedies=remedies(causes),
    )
