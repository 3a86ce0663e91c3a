"""EF503: inputs far from unit size, which no initialisation expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.data import inputs_of_layers
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.limits import OFF_SCALE
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import number, place, site
from evenflow.flow import Flow, Role, Row

FAR_OFF = Threshold(
    1000.0**0.5,
    "RMS of the inputs from which it is an alarm",
    "the largest stable step falls as 1/RMS² (LeCun 1998, section 5): three decades, as in EF101, at √1000; "
    "standardised data have 1, pixels from 0 to 255 about 130",
)


@final
class UnscaledInput(Rule):
    """Reads the size of what enters the first layers."""

    code = "EF503"
    name = "unscaled_input"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The inputs are far from unit size, and no normalisation takes that away."
    causes = (CauseName.UNSCALED_INPUT,)
    thresholds = (OFF_SCALE, FAR_OFF)
    page = Page(
        what="""\
The first loss is far above that of guessing, sigmoids and tanh saturate at once, rectifiers
die, the loss jumps or turns NaN; or, with a learning rate small enough, nothing moves.""",
        why="""\
The data are fed as they were collected: pixels from 0 to 255, prices, years, populations.
Collections of faults met in practice list it among the three most frequent.""",
        mathematics="""\
The gradient of the first layer's weights is δ xᵀ and their curvature grows as E[x xᵀ]: with
inputs of RMS s steps are s times as large and the largest stable learning rate is 1/s² of
the usual one, for that layer alone.""",
        detection="""\
The RMS of what each first layer reads, after whatever the model does to it without weights
(a division by 255 inside the model counts). Ten times unit size is a *note*, √1000 a
*warning*. A normalisation directly behind the layer takes the scale away, and so does one
before it.""",
        remedies="""\
Standardise each feature to mean 0 and standard deviation 1 on the training set, or start
the model with BatchNorm over the features; divide pixels by 255.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, sections 4.3 and 5.",
            "Humbatova et al., Taxonomy of real faults in deep learning systems, ICSE 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        if not flow.select(Role.DATA) and any(map(_reads_batch, filter(graph.is_layer, flow))):
            raise CannotJudgeError("the Flow does not hold what the model read")
        found = [
            (layer, data)
            for layer, data in inputs_of_layers(flow, graph)
            if data.stats is not None
            and data.stats.rms > OFF_SCALE.value
            and not graph.scale_is_free[layer.order]
        ]
        if found:
            yield _finding(*max(found, key=lambda one: one[1].stats.rms if one[1].stats is not None else 0.0))


def _reads_batch(row: Row) -> bool:
    """Whether a layer reads numbers of the batch, and not indices."""
    first = row.site.role is Role.ACTIVATION and not row.inputs
    return first and not row.site.op.startswith("embedding")


def _finding(layer: Row, data: Row) -> Finding:
    assert data.stats is not None
    stats = data.stats
    largest = "" if stats.abs_max is None else f", up to {number(stats.abs_max)} in size"
    text = f"What {place(layer)} reads has an RMS of {number(stats.rms)}{largest}; 1 is expected."
    cause = Cause(CauseName.UNSCALED_INPUT, 1.0, text)
    return Finding(
        code=UnscaledInput.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if stats.rms > FAR_OFF.value else Severity.NOTE,
        site=site(layer),
        message=f"The inputs are {number(stats.rms)} times unit size when they come to {place(layer)}.",
        source=layer.source,
        causes=(cause,),
        evidence=(
            Evidence(text, stats.rms, FAR_OFF.value if stats.rms > FAR_OFF.value else OFF_SCALE.value),
        ),
        remedies=remedies([cause]),
    )
