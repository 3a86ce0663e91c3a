"""EF201: most units of a bounded activation sit on its flat ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.attribution import shares
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import listing, percent, place, site
from evenflow.diagnose.way import OpGraph
from evenflow.flow import Flow, Row

FLAT = Threshold(
    0.5,
    "share of a layer's outputs where the slope is below a tenth of its largest value",
    "a judgement: at half, the typical unit passes less than a tenth; tanh of unit-variance input (Glorot) shows "
    "P(|z| > 1.82) = .07, a chaotic net with σ_w = 2 .3; TheDeepChecker alarms at ρ = .85 of its own measure",
)
ORDINARY = Threshold(
    1.0,
    "RMS of inputs, and gain of weights, that no cause is seen in",
    "standardised inputs; Glorot & Bengio 2010, eq. 12 (a layer that keeps the variance)",
)


@final
class Saturation(Rule):
    """Looks at every hidden sigmoid, tanh and their kin."""

    code = "EF201"
    name = "saturation"
    symptom = Symptom.SATURATION
    summary = "Most units of a sigmoid- or tanh-like activation sit on its flat ends."
    causes = (CauseName.INIT_TOO_LARGE, CauseName.UNSCALED_INPUT, CauseName.UNKNOWN)
    thresholds = (FLAT, ORDINARY)
    page = Page(
        what="""\
A bounded activation answers with one of its two extremes to almost every input. There
its slope is nearly zero, so the layer passes almost no gradient and its own weights
learn slowly.""",
        why="""\
The pre-activations are too large: the inputs were never scaled (pixels up to 255), the
weights are too large for their number, or biases have drifted.""",
        mathematics="""\
σ' = σ(1−σ) and tanh' = 1 − tanh². With y the output rescaled to [−1, 1] both are
proportional to 1 − y², so the slope is below a tenth of its largest value where
y² > .9: |z| > 3.64 for a sigmoid, 1.82 for tanh.

The size of z = Wx splits into two: log rms(z) = log rms(x) + log (√fan_in · rms(W)).""",
        detection="""\
Only hidden activations that feed a later layer are judged. A gate (its output is
multiplied with another signal: LSTM, squeeze-and-excite) may be open or shut for good
reason, a softmax may be sharp, and a saturated output is a matter of the loss
(EF502). The blame is split by the two terms above: the inputs' size, for the first
layer, and the weights' gain.""",
        remedies="""\
Standardise the inputs; initialise by Glorot (xavier_normal_); normalise before the
activation; or use ReLU, GELU or SiLU.""",
        references=(
            "Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, "
            "AISTATS 2010.",
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, sections 4.4 to 4.6.",
            "Ben Braiek, Khomh, Testing feedforward neural networks training programs (TheDeepChecker), "
            "ACM TOSEM 2023.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = OpGraph(flow)
        judged = [
            row
            for row in graph.activations.values()
            if row.site.op in ops.SQUASHING_SLOPE and graph.is_hidden(row)
        ]
        known = [row for row in judged if row.saturated_fraction is not None]
        if judged and not known:
            raise CannotJudgeError("the Flow does not say which share of each activation is saturated")
        found = [row for row in known if (row.saturated_fraction or 0.0) > FLAT.value]
        if found:
            yield _finding(graph, found, len(known))


def _finding(graph: OpGraph, found: list[Row], judged: int) -> Finding:
    row = found[0]
    flat = row.saturated_fraction or 0.0
    causes = _causes(graph, row)
    others = [place(other) for other in found[1:]]
    evidence = [
        Evidence(
            f"{percent(flat)} of the outputs of {place(row)} lie where the slope is below a tenth of its largest "
            f"(alarm above {percent(FLAT.value)}).",
            flat,
            FLAT.value,
        )
    ]
    if others:
        evidence.append(
            Evidence(f"So do {listing(others)}: {len(found)} of {judged} in all.", float(len(found)), None)
        )
    return Finding(
        code=Saturation.code,
        symptom=Symptom.SATURATION,
        severity=Severity.WARNING,
        site=site(row),
        message=f"{percent(flat)} of the units of {place(row)} are saturated: they pass almost no gradient.",
        source=row.source,
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )


def _causes(graph: OpGraph, row: Row) -> tuple[Cause, ...]:
    """Split the size of the pre-activation into that of the input and the gain of the weights."""
    layer = next(
        (source for order in row.inputs if (source := graph.activations.get(order)) is not None), None
    )
    weights = graph.weights_at(layer) if layer is not None and graph.is_layer(layer) else ()
    if layer is None or layer.stats is None or len(weights) != 1 or weights[0].stats is None:
        return (Cause(CauseName.UNKNOWN, 1.0, "What the activation reads is not the output of one weight."),)
    fan_in = math.prod(weights[0].shape[1:])
    gain, size = math.sqrt(fan_in) * weights[0].stats.rms, layer.stats.rms
    if not gain or not size:
        return (Cause(CauseName.UNKNOWN, 1.0, "The weights or their output are all zeros."),)
    inputs = size / gain
    amounts = {
        CauseName.INIT_TOO_LARGE: math.log10(gain / ORDINARY.value),
        CauseName.UNSCALED_INPUT: math.log10(inputs / ORDINARY.value) if not layer.inputs else 0.0,
    }
    texts = {
        CauseName.INIT_TOO_LARGE: f"The weights of {place(layer)} have a gain of {gain:.2g} (√fan_in · RMS); "
        "about 1 suits this activation.",
        CauseName.UNSCALED_INPUT: f"The inputs have an RMS of about {inputs:.2g}; 1 is expected.",
    }
    causes = shares(amounts, texts)
    return causes or (
        Cause(CauseName.UNKNOWN, 1.0, f"{place(layer)} gives an RMS of {size:.2g} at a gain of {gain:.2g}."),
    )
