"""EF504: targets so large that the outputs cannot come near them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from evenflow.diagnose.data import output_of, targets
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.limits import OFF_SCALE
from evenflow.diagnose.rule import Page, Rule, Threshold
from evenflow.diagnose.text import number, place, site
from evenflow.flow import Flow, Row

FAR_OFF = Threshold(
    1000.0,
    "RMS of the targets over that of the outputs from which it is an alarm",
    "three decades, as in EF101: the error is then a thousand times the output; house prices in thousands "
    "(22) and levels up to 257 train",
)


@final
class UnscaledTarget(Rule):
    """Compares the sizes of outputs and targets."""

    code = "EF504"
    name = "unscaled_target"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The targets are orders of magnitude larger than the outputs."
    causes = (CauseName.UNSCALED_TARGET,)
    thresholds = (OFF_SCALE, FAR_OFF)
    page = Page(
        what="""\
The loss starts at millions and either explodes at the first steps or creeps: the outputs
need thousands of steps to come to the size of the targets.""",
        why="""\
A regression to prices, populations, years, in their own units. Initial outputs have unit
size.""",
        mathematics="""\
The gradient of ½(ŷ − y)² is ŷ − y ≈ −y: s times the usual for targets of size s, so plain
SGD needs 1/s of the usual learning rate. Adam's steps do not depend on s, so its bias needs
about s/lr steps to arrive.""",
        detection="""\
Of losses that measure a distance (squared, absolute, Huber, also spelled out) the RMS of the
target is compared with that of the output, or with 1 if that is larger: a trained or scaled
output raises nothing. Ten times is a *note*, a thousand times a *warning*.""",
        remedies="""\
Standardise the targets on the training set, and undo it when predicting; for targets over
several orders of magnitude predict their logarithm.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.5.",
            "van Hasselt et al., Learning values across many orders of magnitude, NeurIPS 2016.",
            "Humbatova et al., Taxonomy of real faults in deep learning systems, ICSE 2020.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        graph = op_graph(flow)
        for row, target in targets(flow, graph):
            output = output_of(graph, row)
            if output is None or output.stats is None or target.stats is None:
                continue
            if target.stats.rms / max(output.stats.rms, 1.0) > OFF_SCALE.value:
                yield _finding(row, output, target)


def _finding(row: Row, output: Row, target: Row) -> Finding:
    assert output.stats is not None
    assert target.stats is not None
    ratio = target.stats.rms / max(output.stats.rms, 1.0)
    text = (
        f"The targets have an RMS of {number(target.stats.rms)} and a mean of {number(target.stats.mean)}, "
        f"the outputs of {place(output)} an RMS of {number(output.stats.rms)}."
    )
    cause = Cause(CauseName.UNSCALED_TARGET, 1.0, text)
    alarm = ratio > FAR_OFF.value
    return Finding(
        code=UnscaledTarget.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if alarm else Severity.NOTE,
        site=site(output),
        message=f"The targets are {number(ratio)} times as large as the outputs that {row.site.op} compares "
        "with them.",
        source=row.source or output.source,
        causes=(cause,),
        evidence=(Evidence(text, ratio, FAR_OFF.value if alarm else OFF_SCALE.value),),
        remedies=remedies([cause]),
    )
