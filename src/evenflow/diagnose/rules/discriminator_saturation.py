"""EF801: the discriminator is sure of everything, and its generator learns nothing from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

SURE = Threshold(
    0.05,
    "of its starting level that the discriminator's loss has over the last third, at most",
    "untrained it is 2 ln 2 (or ln 2); a twentieth of that is an average of 97 % given to the right answer, "
    "since −ln .966 = .035; in a balanced game it stays near its start",
)
STAYS = Threshold(
    0.9,
    "share of the last third's losses for which that holds",
    "a judgement: no more than passing doubts",
)
SHORTEST = Threshold(
    6.0,
    "losses of the discriminator from which its last third can be judged",
    "a judgement, as in EF802: two values make the third",
)


@final
class DiscriminatorSaturation(RunRule):
    """Looks at the discriminator's loss over the last third of the run."""

    code = "EF801"
    name = "discriminator_saturation"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The discriminator tells real from generated without doubt, and keeps on doing so."
    causes = (CauseName.DISCRIMINATOR_SATURATION,)
    thresholds = (SURE, STAYS, SHORTEST)
    page = Page(
        what="""\
The discriminator's loss goes to zero and stays there. The generator's samples do not
improve any more, or all become alike, whatever its own loss says.""",
        why="""\
The discriminator is stronger, trained more often or faster; real and generated data do
not overlap, which is so at the start for any data on a thin manifold; it can recognise
batches by their statistics (batch normalisation over mixed batches).""",
        mathematics="""\
With D = σ(a) the generator's loss ln(1 − D) has the slope −D, which vanishes for
D → 0: no gradient. The non-saturating −ln D has slope −(1 − D), which does not vanish,
but its direction is that of a discriminator that is constant nearly everywhere
(Arjovsky, Bottou 2017, theorem 2.4).""",
        detection="""\
Only for losses that start above zero, as cross-entropy and least squares do; critics
(Wasserstein, hinge) have no bottom to saturate at and are left out when their loss goes
below zero. The discriminator's loss must lie below a twentieth of its start over the
last third of the run. The generator's own loss proves nothing: it may rise while
samples become better, and is not looked at.""",
        remedies="""\
Use the non-saturating, hinge or Wasserstein loss; train the discriminator less, or with a
lower learning rate; regularise it (R1, spectral norm, label smoothing, noise on its
inputs).""",
        references=(
            "Goodfellow et al., Generative adversarial nets, NeurIPS 2014, section 3.",
            "Arjovsky, Bottou, Towards principled methods for training GANs, ICLR 2017, theorem 2.4.",
            "Mescheder, Geiger, Nowozin, Which training methods for GANs do actually converge?, ICML 2018.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        pair = history.adversaries
        if pair is None:
            return
        generator, discriminator = pair
        curve = history.loss(discriminator, at_least=int(SHORTEST.value))
        last = curve.last_third
        if not curve.start > 0.0 or not (last >= 0.0).all():
            return
        sure = float((last < SURE.value * curve.start).mean())
        if sure < STAYS.value:
            return
        text = (
            f"Over the last third of the run its loss is {number(curve.end)}; it started at "
            f"{number(curve.start)}."
        )
        cause = Cause(CauseName.DISCRIMINATOR_SATURATION, 1.0, text)
        began = curve.steps[curve.last_above(SURE.value * curve.start)]
        yield Finding(
            code=self.code,
            symptom=self.symptom,
            severity=Severity.WARNING,
            site=discriminator,
            message=f"The {discriminator} is sure of every sample: its loss is {number(curve.end)}, and the "
            f"{generator} has nothing to learn from.",
            causes=(cause,),
            evidence=(
                Evidence(text, curve.end / curve.start, SURE.value),
                Evidence(f"It has been so since step {began}.", float(began)),
            ),
            remedies=remedies((cause,)),
        )
