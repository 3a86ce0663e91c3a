"""EF609: parameters that get gradients and are never moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import count, listing, percent

if TYPE_CHECKING:
    from evenflow.diagnose.history import History

SUFFERS = Threshold(
    0.2,
    "share by which the loss has come down at most, from its start or, if less, from what guessing costs",
    "a judgement, the same as in EF605; a backbone is often left out of the optimizer on purpose",
)
RANDOM = Threshold(
    0.5,
    "of all weight matrices (and two modules) that stay as they were initialised, for an alarm",
    "a judgement: half of the depth; one layer of random features is a method (Rahimi & Recht 2007)",
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
    summary = "No step ever changes parameters that should learn: left out of the optimizer, or frozen."
    causes = (CauseName.FROZEN_OR_DETACHED, CauseName.LEARNING_RATE_TOO_LOW)
    thresholds = (SUFFERS, RANDOM, ENOUGH)
    page = Page(
        what="""\
A part of the model takes part in every forward and backward pass, and stays exactly as it
was initialised. Nothing fails and no error is raised.""",
        why="""\
The optimizer was made before a layer was added or replaced, or from a part of the
parameters; parameters were replaced by new tensors afterwards (`.to`, `.data = `,
`load_state_dict(assign=True)`); the learning rate of their group is 0; a list of
modules is no `nn.ModuleList`, so `parameters()` does not find them. Or a backbone was frozen,
and the weights that it should have been given first were never loaded.""",
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
untrained model, and a note otherwise. If nothing at all was moved it is an alarm, unless the
loss falls all the same: then the optimizer moves something else (an image, a prompt).

What stays as it is must have been trained before, or it gives random features. Fresh weights
are known by their numbers: uniform ones have no entry above √3 times their RMS, normal ones
have one of the deviations in use, biases and gains are zero, one or within 1/√fan_in. So it
is an alarm too if half of all weight matrices, in two modules or more, never change, are
fresh, and come before everything that does learn; here frozen ones count as well, if a layer
that learns reads what they give.""",
        remedies="""\
Make the optimizer from `model.parameters()` after the model has got its final
parameters, or add what is missing with `optimizer.add_param_group`. If it is meant, say
so with `requires_grad_(False)`, which saves the gradient's cost too.""",
        references=("PyTorch documentation, torch.optim: constructing an optimizer.",),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        if len(history.steps) < ENOUGH.value and not _holds_nothing(history):
            raise CannotJudgeError(f"fewer than {ENOUGH.value:.0f} steps were sampled")
        for role in history.roles:
            yield from _judge(history, role)


def _holds_nothing(history: History) -> bool:
    """Whether no optimizer has a parameter of the model, which needs no step to be known."""
    from evenflow.flow import Role

    return Role.UPDATE not in history.grids and any(one.kind == "unmoved" for one in history.run.events)


def _judge(history: History, role: str) -> Iterator[Finding]:
    import numpy as np

    from evenflow.flow import Role

    names = history.parameters(role)
    gradients = np.nan_to_num(history.of(Role.PARAMETER_GRADIENT, names)).max(axis=0, initial=0.0)
    reached = gradients > 0.0
    rate = history.scalar("lr", role)
    no_rate = rate is not None and not (rate.values > 0.0).any()
    moved = np.isfinite(history.of(Role.UPDATE, names)).any(axis=0) & np.full(len(names), not no_rate)
    still = [name for name, idle in zip(names, reached & ~moved, strict=True) if idle]
    untrained = _untrained(history, role, [name for name, one in zip(names, moved, strict=True) if one])
    if untrained and not no_rate:
        yield _random_features(history, role, untrained)
    elif still:
        share = len(still) / int(reached.sum())
        alarm = _suffers(history, role) or (share == 1.0 and not _falls(history, role))
        yield _left_out(still, share, no_rate, alarm=alarm)


def _left_out(still: Sequence[str], share: float, no_rate: bool, *, alarm: bool) -> Finding:
    message = f"{percent(share)} of the parameters that get gradients are never changed by the optimizer."
    if share == 1.0 and not no_rate:
        modules = listing(list(dict.fromkeys(name.rpartition(".")[0] for name in still)))
        message = f"The optimizer changes nothing of the model: gradients reach {modules}, and none moves."
    if no_rate:
        cause = Cause(CauseName.LEARNING_RATE_TOO_LOW, 1.0, "The learning rate is 0 throughout.")
    else:
        text = f"{count(len(still), 'parameter')} got gradients and no update at any step: {listing(still)}."
        cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, text)
    return Finding(
        code=NeverUpdated.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if alarm else Severity.NOTE,
        site=still[0],
        message=message,
        causes=(cause,),
        evidence=(Evidence(cause.evidence, float(len(still)), 0.0),),
        remedies=(
            "Make the optimizer from model.parameters() once the model is complete.",
            "If it is meant, say so with requires_grad_(False).",
        ),
    )


def _untrained(history: History, role: str, moved: Sequence[str]) -> list[str]:
    """The weight matrices that stay as initialised before all that learns, if they are enough; else none."""
    from evenflow.diagnose.fresh import are_fresh
    from evenflow.flow import Role

    names, matrices = history.parameters(role), history.parameters(role, matrices=True)
    if history.is_adversarial or not moved or history.first is None:
        return []
    before = set(names[: min(names.index(name) for name in moved)])
    found = [name for name in matrices if name in before]
    if len({name.rpartition(".")[0] for name in found}) < 2 or len(found) < RANDOM.value * len(matrices):
        return []
    rows = [row for row in history.first.select(Role.PARAMETER) if row.site.path in before]
    sizes = history.of(Role.PARAMETER, found, "mean_square")
    if not are_fresh(rows) or not (sizes == sizes[:1]).all() or not _feed_what_learns(history, found):
        return []
    return found


def _feed_what_learns(history: History, names: Sequence[str]) -> bool:
    """Whether a layer that learns reads what comes of some parameters, and the loss not alone."""
    from evenflow.diagnose.cuts import Use, uses
    from evenflow.diagnose.graph import op_graph
    from evenflow.flow import Role, Status

    for flow in history.measured.values():
        statuses = {row.site.path: row.status for row in flow.select(Role.PARAMETER_GRADIENT)}
        if all(statuses.get(name) is Status.OK for name in names):
            return True  # a gradient came back from there
        modules = {name.rpartition(".")[0] for name in names}
        part = [row for row in flow.select(Role.ACTIVATION) if row.site.path in modules]
        found = uses(flow, op_graph(flow), part) if part else {}
        if Use.FEATURES in found and Use.SAMPLES not in found and Use.TARGET not in found:
            return True
    return False


def _random_features(history: History, role: str, untrained: Sequence[str]) -> Finding:
    matrices = len(history.parameters(role, matrices=True))
    text = (
        f"{listing(untrained)} never change, and have the distribution of a fresh initialisation: "
        "all that learns reads random features."
    )
    cause = Cause(CauseName.FROZEN_OR_DETACHED, 1.0, text)
    return Finding(
        code=NeverUpdated.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING,
        site=untrained[0],
        message=f"{len(untrained)} of {matrices} weight matrices stay as they were initialised: they were "
        "never trained, and do not learn now.",
        causes=(cause,),
        evidence=(Evidence(text, len(untrained) / matrices, RANDOM.value),),
        remedies=(
            "Load the trained weights before freezing, or let these parts learn: requires_grad_(True), "
            "and all of model.parameters() in the optimizer.",
        ),
    )


def _suffers(history: History, role: str) -> bool:
    from evenflow.diagnose.suspects import is_fine_tuning

    try:
        curve = history.loss(role)
    except CannotJudgeError:
        return False
    learns = history.gained(curve) >= SUFFERS.value or is_fine_tuning(history, role, curve)
    return role in history.learners and not learns


def _falls(history: History, role: str) -> bool:
    try:
        return history.gained(history.loss(role)) >= SUFFERS.value
    except CannotJudgeError:
        return False
