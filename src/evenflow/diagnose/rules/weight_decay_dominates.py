"""EF608: weight decay takes more from the weights than the loss gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.limits import HALVED
from evenflow.diagnose.rule import Page, RunRule, Threshold
from evenflow.diagnose.text import number, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

SHRUNK = Threshold(
    0.5,
    "of its first RMS that the typical weight matrix ends at, at most",
    "a judgement: in a plain net of L layers the signal then falls by 2^L",
)
BY_DECAY = Threshold(
    0.5,
    "of what moves the typical weight that weight decay makes, at least",
    "half: the larger part of what happens to the weights",
)
_DECOUPLED = ("AdamW",)
"""Optimizers that take decay from the weights themselves; others add it to the gradient."""


@final
class WeightDecayDominates(RunRule):
    """Compares what weight decay takes with the whole update."""

    code = "EF608"
    name = "weight_decay_dominates"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "The weights shrink because weight decay is stronger than the gradient."
    causes = (CauseName.UNKNOWN,)
    thresholds = (SHRUNK, BY_DECAY, HALVED)
    page = Page(
        what="""\
The weights become smaller from step to step, most of each update points to zero, and
the loss does not fall: the model forgets as fast as it learns, and in the end its
output no longer depends on the input.""",
        why="""\
The coefficient is too large for the learning rate and the gradient: 1e-4 to .1 are
usual, times a learning rate. With Adam (unlike AdamW) it passes through the division by
√v, so that it pulls with full strength wherever the gradient is small.""",
        mathematics="""\
A step without gradient is w ← (1 − ηλ)w: after t steps (1 − ηλ)^t ≈ e^(−ηλt) is left.
Gradient and decay balance where ‖g‖ = λ‖w‖; above that the weights shrink. A
normalised network bears it, for there the size of weights is without effect and decay
sets the effective learning rate.""",
        detection="""\
AdamW takes η·λ·rms(w) from the weights, which is compared with the update's RMS; others
add λ·w to the gradient, and λ·rms(w) is compared with the gradient's, whatever momentum or
Adam make of the sum. Decay must have half of it at the typical step, the typical matrix
must have shrunk to less than half, and the loss must not have halved: decay that shrinks
weights while the loss falls is what decay is for.""",
        remedies="""\
Divide the weight decay by 10, or set it to 0 to see whether the loss then falls; use
AdamW instead of Adam; leave biases and gains out of it.""",
        references=(
            "Loshchilov, Hutter, Decoupled weight decay regularization, ICLR 2019.",
            "Zhang, Wang, Xu, Grosse, Three mechanisms of weight decay regularization, ICLR 2019.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        for role in history.learners:
            if history.setting(role, "weight_decay"):
                yield from _judge(history, role)


def _judge(history: History, role: str) -> Iterator[Finding]:
    import numpy as np

    from evenflow.diagnose.suspects import on_steps
    from evenflow.flow import Role

    curve = history.loss(role)
    names = history.parameters(role, matrices=True)
    rate = history.scalar("lr", role)
    decay = history.setting(role, "weight_decay") or 0.0
    if not names or rate is None or history.gained(curve) >= HALVED.value:
        return
    weights, updates = history.of(Role.PARAMETER, names), history.of(Role.UPDATE, names)
    with np.errstate(divide="ignore", invalid="ignore"):
        if history.optimizers[role].get("class") in _DECOUPLED:
            taken = on_steps(rate, history.steps)[:, None] * decay * weights
            part = np.where(updates > 0.0, taken / updates, np.nan)
        else:
            part = decay * weights / (decay * weights + history.of(Role.PARAMETER_GRADIENT, names))
        left = weights[-1] / weights[0]
    known = part[np.isfinite(part)]
    if not known.size or not np.isfinite(left).any():
        return
    share, shrunk = min(float(np.median(known)), 1.0), float(np.nanmedian(left))
    if share < BY_DECAY.value or shrunk > SHRUNK.value:
        return
    text = (
        f"Weight decay ({number(decay)}) makes {percent(share)} of what moves the typical weight, and the "
        f"typical weight matrix has shrunk to {percent(shrunk)} of its first size."
    )
    yield Finding(
        code=WeightDecayDominates.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=names[int(np.nanargmin(left))],
        message="Weight decay is stronger than the gradient: the weights shrink and the loss does not fall.",
        causes=(Cause(CauseName.UNKNOWN, 1.0, text),),
        evidence=(
            Evidence(text, share, BY_DECAY.value),
            Evidence("What is left of the typical weight matrix.", shrunk, SHRUNK.value),
        ),
        remedies=("Divide the weight decay by 10.", "Use AdamW instead of Adam with weight decay."),
    )
