"""EF201: most units of a bounded activation sit on its flat ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.attribution import shares
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import OpGraph, op_graph
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import listing, percent, place, site
from evenflow.flow import Flow, Row

FLAT = Threshold(
    0.5,
    "share of a layer's outputs where the slope is below a tenth of its largest value",
    "a judgement: at half, the typical unit passes less than a tenth; tanh of unit-variance input "
    "(Glorot) shows "
    "P(|z| > 1.82) = .07, a chaotic net with σ_w = 2 .3; TheDeepChecker alarms at ρ = .85 of its own measure",
)
OPEN = Threshold(
    0.1,
    "share of paths through the saturated layers that stay open, below which it is an alarm",
    "a judgement, the tenth of FLAT once more; Nielsen's 784-30-10 net of N(0,1) weights (healthy, "
    "chapter 1) "
    "has 79 % of its one hidden layer saturated and .21 open",
)
OFF_SCALE = Threshold(
    10.0,
    "RMS of the inputs from which they are blamed and one saturated layer is an alarm",
    "a judgement: ten times the size that every initialisation assumes; standardised data have 1, "
    "pixels from 0 to 255 about 130",
)


@final
class Saturation(Rule):
    """Looks at every hidden sigmoid, tanh and their kin."""

    code = "EF201"
    name = "saturation"
    symptom = Symptom.SATURATION
    summary = "Most units of a sigmoid- or tanh-like activation sit on its flat ends."
    causes = (CauseName.INIT_TOO_LARGE, CauseName.UNSCALED_INPUT, CauseName.UNKNOWN)
    thresholds = (FLAT, OPEN, OFF_SCALE)
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
(EF502). One saturated layer does little harm if its weights differ, because each unit
is open for some samples. So it is a note, and an alarm if layers in a row leave less
than a tenth of the paths open, or if the inputs are off scale, which closes the same
units for all samples. The blame is split by the two terms above: the inputs' size,
for the first layer, and the weights' gain.""",
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
        graph = op_graph(flow)
        bounded = _hidden(graph)
        judged = [row for row in bounded if row.saturated_fraction is not None]
        if bounded and not judged:
            raise CannotJudgeError("the Flow does not say which share of each activation is saturated")
        found = [row for row in judged if _flat(row) > FLAT.value]
        if found:
            yield _finding(graph, found, len(judged))


def _hidden(graph: OpGraph) -> list[Row]:
    """Bounded activations on their way to a later layer; an op that gates in one call is a gate in all."""
    bounded = [row for row in graph.activations.values() if row.site.op in ops.SQUASHING_SLOPE]
    gates = {replace(row.site, call=0) for row in bounded if graph.is_gate(row.order)}
    return [row for row in bounded if graph.is_hidden(row) and replace(row.site, call=0) not in gates]


def _flat(row: Row) -> float:
    return row.saturated_fraction or 0.0


def _finding(graph: OpGraph, found: list[Row], judged: int) -> Finding:
    row = found[0]
    causes = _causes(graph, row)
    least_open = _least_open(graph, found)
    off_scale = any(cause.name is CauseName.UNSCALED_INPUT for cause in causes)
    evidence = [
        Evidence(
            f"At {percent(_flat(row))} of the outputs of {place(row)} the slope is below a tenth of "
            "its largest "
            f"(looked at above {percent(FLAT.value)}).",
            _flat(row),
            FLAT.value,
        )
    ]
    if others := [place(other) for other in found[1:]]:
        evidence.append(
            Evidence(
                f"So it is at {listing(others)}: {len(found)} of {judged} layers, "
                f"which leave {percent(least_open)} of the paths open.",
                least_open,
                OPEN.value,
            )
        )
    return Finding(
        code=Saturation.code,
        symptom=Symptom.SATURATION,
        severity=Severity.WARNING if least_open < OPEN.value or off_scale else Severity.NOTE,
        site=site(row),
        message=f"{percent(_flat(row))} of the units of {place(row)} are saturated: they pass almost "
        "no gradient.",
        source=row.source,
        causes=causes,
        evidence=tuple(evidence),
        remedies=remedies(causes),
    )


def _least_open(graph: OpGraph, found: list[Row]) -> float:
    """Share of paths open through saturated layers in a row, along the best way to the worst place."""
    closed = {row.order: _flat(row) for row in found}
    open_at: dict[int, float] = {}
    for order in sorted(graph.inputs):
        before = [open_at[source] for source in graph.inputs[order] if source in open_at]
        open_at[order] = max(before, default=1.0) * (1.0 - closed.get(order, 0.0))
    return min(open_at[order] for order in closed)


def _causes(graph: OpGraph, row: Row) -> tuple[Cause, ...]:
    """Split the size of the pre-activation into that of the input and the gain of the weights."""
    layer = _largest_layer(graph, row)
    inputs = graph.input_rms(layer) if layer is not None else None
    if layer is None or layer.stats is None or not inputs:
        return (
            Cause(CauseName.UNKNOWN, 1.0, "What the activation reads does not come from one weight alone."),
        )
    gain = layer.stats.rms / inputs
    texts = {
        CauseName.INIT_TOO_LARGE: f"The weights of {place(layer)} have a gain of {gain:.2g} (√fan_in · RMS); "
        "about 1 suits this activation.",
        CauseName.UNSCALED_INPUT: f"The inputs have an RMS of about {inputs:.2g}; 1 is expected.",
    }
    amounts = {CauseName.INIT_TOO_LARGE: math.log10(gain)}
    if not layer.inputs and inputs > OFF_SCALE.value:
        amounts[CauseName.UNSCALED_INPUT] = math.log10(inputs)
    return shares(amounts, texts) or (
        Cause(
            CauseName.UNKNOWN,
            1.0,
            f"{place(layer)} gives an RMS of {layer.stats.rms:.2g} at a gain of {gain:.2g}.",
        ),
    )


def _largest_layer(graph: OpGraph, row: Row) -> Row | None:
    """The layer with the largest output among those whose sum the activation reads."""
    found: list[Row] = []
    pending = list(row.inputs)
    while pending:
        source = graph.activations.get(pending.pop())
        if source is None or source.stats is None:
            continue
        if graph.is_layer(source):
            found.append(source)
        elif source.site.op in ("add", "unbind", "split", "unsafe_split"):
            pending.extend(source.inputs)
    return max(found, key=lambda layer: layer.stats.rms if layer.stats is not None else 0.0, default=None)
