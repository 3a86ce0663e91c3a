"""EF609: parameters that get gradients and are never moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import count, listing, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

SUFFERS = Threshold(
    0.2,
    "of its starting level that the loss has fallen by at most, for an alarm",
    "a judgement, the same as in EF605; a backbone is often left out of the optimizer on purpose",
)
ENOUGH = Threshold(
    3.0,
    "sampled steps from which `never` means something",
    "a judgement: optimizers with a warm-up at exactly 0 skip their first step",
)


@final
class NeverUpdated(RunRule):
    """Looks for an update of every parameter that has gradients."""

    code = "EF609"
    name = "never_updated"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Parameters get gradients, and no step ever changes them: they are not in the optimizer."
    causes = (CauseName.FROZEN_OR_DETACHED, CauseName.LEARNING_RATE_TOO_LOW)
    thresholds = (SUFFERS, ENOUGH)
    page = Page(
        what="""\
A part of the model takes part in every forward and backward pass, and stays exactly as it
was initialised. Nothing fails and no error is raised.""",
        why="""\
The optimizer was made before a layer was added or replaced, or from a part of the
parameters; parameters were replaced by new tensors afterwards (`.to`, `.data = `,
`load_state_dict(assign=True)`); the learning rate of their group is 0; a list of
modules is no `nn.ModuleList`, so `parameters()` does not find them.""",
        mathematics="""\
θ_{t+1} = θ_t exactly, while ∂L/∂θ ≠ 0. With a layer of random weights in the middle the
layers around it can still learn: the loss falls, only less far. That is why it goes
unnoticed.""",
        detection="""\
A parameter counts if a gradient that is not zero reached it at some sampled step and no
optimizer took a step on it at any (an update that rounding swallows is EF706's
business). Frozen parameters (`requires_grad` is off) have no
gradient and are left out. To leave a pretrained part out of the optimizer is common
practice, so it is an alarm only if the loss has hardly fallen from the level of an
untrained model, or if nothing at all was moved, and a note otherwise.""",
        remedies="""\
Make the optimizer from `model.parameters()` after the model has got its final
parameters, or add what is missing with `optimizer.add_param_group`. If it is meant, say
so with `requires_grad_(False)`, which saves the gradient's cost too.""",
        references=("PyTorch documentation, torch.optim: constructing an optimizer.",),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        if len(history.steps) < ENOUGH.value:
            raise CannotJudgeError(f"fewer than {ENOUGH.value:.0f} steps were sampled")
        for role in history.roles:
            yield from _judge(history, role)


def _judge(history: History, role: str) -> Iterator[Finding]:
    import numpy as np

    from evenflow.flow import Role

    names = history.parameters(role)
    gradients = np.nan_to_num(history.of(Role.PARAMETER_GRADIENT, names)).max(axis=0, initial=0.0)
    reached = gradients > 0.0
    rate = history.scalar("lr", role)
    no_rate = rate is not None and not (rate.values > 0.0).any()
    moved = np.isfinite(history.of(Role.UPDATE, names)).any(axis=0) & (not no_rate)
    still = [name for name, idle in zip(names, reached & ~moved, strict=True) if idle]
    if not still:
        return
    everything = len(still) == int(reached.sum())
    if no_rate:
        cause = Cause(CauseName.LEARNING_RATE_TOO_LOW, 1.0, "The learning rate is 0 throughout.")
    else:
        text = f"{count(len(still), 'parameter')} got gradients and no update at any step: {listing(still)}."
        cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, text)
    share = len(still) / int(reached.sum())
    yield Finding(
        code=NeverUpdated.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if everything or _suffers(history, role) else Severity.NOTE,
        site=still[0],
        message=f"{percent(share)} of the parameters that get gradients are never changed by the optimizer.",
        causes=(cause,),
        evidence=(Evidence(cause.evidence, float(len(still)), 0.0),),
        remedies=(
            "Make the optimizer from model.parameters() once the model is complete.",
            "If it is meant, say so with requires_grad_(False).",
        ),
    )


def _suffers(history: History, role: str) -> bool:
    from evenflow.diagnose.suspects import is_fine_tuning

    try:
        curve = history.loss(role)
    except CannotJudgeError:
        return False
    learns = curve.relative_fall >= SUFFERS.value or is_fine_tuning(history, role, curve)
    return role in history.learners and not learns
