"""EF610: inputs or targets far from unit size, and a loss that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import CauseName as Name
from evenflow.diagnose.finding import Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import HALVED, OFF_SCALE
from evenflow.diagnose.rule import Page, RunRule
from evenflow.diagnose.text import number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History


@final
class UnscaledData(RunRule):
    """Looks at the size of inputs and targets where training does badly."""

    code = "EF610"
    name = "unscaled_data"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Inputs or targets are far from unit size, and the loss comes down slowly or not at all."
    causes = (Name.UNSCALED_INPUT, Name.UNSCALED_TARGET)
    thresholds = (OFF_SCALE, HALVED)
    page = Page(
        what="""\
The data go into the network, or are to come out of it, as they were collected: pixels
from 0 to 255, prices, years. The loss starts at thousands or millions and creeps.""",
        why="""\
Initial weights are made for inputs and outputs of size 1. Inputs of size s make the first
layer's gradient s times as large and its curvature s² times; targets of size s must be
reached by an output layer that moves by one learning rate a step.""",
        mathematics="""\
The curvature of a squared error in the first weights is E xxᵀ: it grows as s², and with
inputs that are not centred its largest eigenvalue belongs to their mean, n·mean². The
largest learning rate is 2 over that, for all directions. With Adam a bias needs at
least |y|/η steps to come to y.""",
        detection="""\
The inputs' RMS is read from the first layer's output and its weights; a squared error at
the start says how large the targets are, if the output is small. Ten times unit size
counts, and only if the loss has not halved.""",
        remedies="""\
Standardise inputs and targets to mean 0 and standard deviation 1 over the training set,
and undo it when predicting; or start with a BatchNorm over the inputs.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, sections 4.3 and 5.",
            "LeCun, Kanter, Solla, Eigenvalues of covariance matrices, Phys. Rev. Lett. 1991.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        from evenflow.diagnose.suspects import unscaled_input, unscaled_target

        for role in history.learners[:1]:
            curve = history.loss(role)
            if history.gained(curve) >= HALVED.value:
                continue
            found = (unscaled_input(history), unscaled_target(history, curve))
            causes = tuple(cause for cause in found if cause is not None)
            if causes:
                yield Finding(
                    code=self.code,
                    symptom=self.symptom,
                    severity=Severity.WARNING,
                    site=curve.name,
                    message=f"The loss fell by {percent(max(curve.relative_fall, 0.0))} only, to "
                    f"{number(curve.end)}, with data far from unit size.",
                    causes=causes,
                    evidence=tuple(Evidence(cause.evidence) for cause in causes),
                    remedies=remedies(causes),
                )
