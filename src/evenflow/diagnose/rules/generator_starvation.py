"""EF802: the generator's gradient fades away while the discriminator's does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History
    from evenflow.diagnose.history.grid import Floats

FADED = Threshold(
    1e-2,
    "of its norm in the first tenth of the run that the generator's gradient has in the last third, at most",
    "a judgement: two decades; the gradient of a game in balance does not fade, for the opponent moves on",
)
ENOUGH = Threshold(
    6.0,
    "sampled steps of the generator from which its beginning and end can be compared",
    "a judgement: two make the beginning, two the end",
)


@final
class GeneratorStarvation(RunRule):
    """Compares the generator's gradient at the end with that at the start, and with the discriminator's."""

    code = "EF802"
    name = "generator_starvation"
    symptom = Symptom.VANISHING_GRADIENT
    summary = "The generator's gradient fades by orders of magnitude, or never comes."
    causes = (CauseName.DISCRIMINATOR_SATURATION, CauseName.FROZEN_OR_DETACHED)
    thresholds = (FADED, ENOUGH)
    page = Page(
        what="""\
The generator takes its steps, and its gradient is a hundredth, a millionth or nothing of
what it was. Its samples stay what they are.""",
        why="""\
The discriminator saturates (EF801) and the generator minimises ln(1 − D), whose slope
vanishes with D. Or the samples were detached before the discriminator saw them, in the
generator's turn too, so that no gradient can come back at all.""",
        mathematics="""\
∂/∂a ln(1 − σ(a)) = −σ(a): at a = −10, a discriminator that gives the sample 5·10⁻⁵,
that is what is left of the gradient. Adam hides it, for it divides by the size: steps
stay as long as before and point wherever rounding and old momentum point.""",
        detection="""\
The norm of all of the generator's gradients, before clipping, over the first tenth and the
last third of the sampled steps. It is starved if the typical last one is below a hundredth
of the typical first one, and the discriminator's loss shows that there is still a
difference to learn from: it is below where it started. No gradient at all from the
first step on is a detached generator.""",
        remedies="""\
Minimise −ln D instead of ln(1 − D); see EF801 for the balance. Detach generated samples
in the discriminator's turn only.""",
        references=(
            "Goodfellow et al., Generative adversarial nets, NeurIPS 2014, section 3.",
            "Arjovsky, Bottou, Towards principled methods for training GANs, ICLR 2017.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        pair = history.adversaries
        if pair is None:
            return
        import numpy as np

        from evenflow.flow import Role

        generator, discriminator = pair
        names = history.parameters(generator)
        norms = history.of(Role.PARAMETER_GRADIENT, names, "norm")
        seen = np.isfinite(history.of(Role.PARAMETER, names, "norm")).any(axis=1)
        if seen.sum() < ENOUGH.value:
            raise CannotJudgeError(f"fewer than {ENOUGH.value:.0f} steps of the {generator} were sampled")
        if not np.isfinite(norms).any():
            yield _detached(generator, names[0])
            return
        first, last = _ends(np.linalg.norm(np.nan_to_num(norms), axis=1)[np.isfinite(norms).any(axis=1)])
        curve = history.loss(discriminator)
        if first > 0.0 and last < FADED.value * first and curve.end < curve.start:
            yield _starved(generator, first, last)


def _ends(norms: Floats) -> tuple[float, float]:
    """The typical norm of the first tenth and of the last third."""
    import numpy as np

    few, many = max(len(norms) // 10, 2), max(len(norms) // 3, 2)
    return float(np.median(norms[:few])), float(np.median(norms[-many:]))


def _starved(generator: str, first: float, last: float) -> Finding:
    text = (
        f"Its gradient's norm was {number(first)} in the first tenth of the run, {number(last)} in the last."
    )
    cause = Cause(CauseName.DISCRIMINATOR_SATURATION, 0.8, text)
    return Finding(
        code=GeneratorStarvation.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.WARNING,
        site=generator,
        message=f"The {generator} starves: its gradient has fallen to {number(last / first)} of what it was.",
        causes=(cause,),
        evidence=(Evidence(text, last / first, FADED.value),),
        remedies=remedies((cause,)),
    )


def _detached(generator: str, name: str) -> Finding:
    text = f"No parameter of the {generator} got a gradient at any sampled step."
    cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, text)
    return Finding(
        code=GeneratorStarvation.code,
        symptom=Symptom.VANISHING_GRADIENT,
        severity=Severity.ERROR,
        site=name,
        message=f"No gradient reaches the {generator}.",
        causes=(cause,),
        evidence=(Evidence(text),),
        remedies=("Detach generated samples in the discriminator's turn only.", *remedies((cause,))),
    )
