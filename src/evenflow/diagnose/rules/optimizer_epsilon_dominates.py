"""EF607: Adam's ε is larger than the gradients that it should normalise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import HALVED, PERSISTENT
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import listing, number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History
    from evenflow.flow import Series

BELOW = Threshold(
    0.1,
    "of ε that the root mean square of a parameter's gradients reaches at most",
    "at √v = ε/10 the step is 1/11 of Adam's; at √v = ε it is still a half",
)
MOST = Threshold(
    0.5,
    "share of the weight matrices that it must hold for, to be an alarm",
    "a judgement: most of the model",
)


@final
class OptimizerEpsilonDominates(RunRule):
    """Compares the optimizer's second moments with its ε."""

    code = "EF607"
    name = "optimizer_epsilon_dominates"
    symptom = Symptom.LOSS_NOT_DECREASING
    summary = "Gradients are so small that the optimizer's ε, not their size, sets the step."
    causes = (CauseName.OPTIMIZER_EPSILON_DOMINATES,)
    thresholds = (BELOW, PERSISTENT, MOST, HALVED)
    page = Page(
        what="""\
Adam, RMSprop and their relatives make steps of the size of the learning rate whatever
the gradient's. That ends where gradients are smaller than ε: there steps shrink with
the gradient, and parameters stand still.""",
        why="""\
The gradient vanishes on the way down; the loss was divided by a large number (a mean
over many entries, a small weight); or ε was set for another purpose: 1e-3 and 1e-1
are in use against instability, with learning rates to match.""",
        mathematics="""\
A step is η·m/(√v + ε). With √v ≪ ε it is η·m/ε: SGD with learning rate η/ε, and the
gradient's size counts again. √v is the root mean square of recent gradients, of which
the first t steps hold the share 1 − β₂^t.""",
        detection="""\
The mean of v over a parameter's entries, corrected for its start, is compared with ε²
at all sampled steps. It holds for a parameter if it holds at half of them, and is an
alarm if it holds for most weight matrices and the loss has not halved. Parameters
that have no gradient at all are EF501's business.""",
        remedies="""\
Lower ε: 1e-15 is harmless in float32. Scale the loss up. Find out why gradients are so
small (EF101).""",
        references=(
            "Kingma, Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1.",
            "Wortsman et al., Small-scale proxies for large-scale transformer training instabilities, "
            "ICLR 2024, section 3.4.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        roles = [role for role in history.roles if history.has_second_moments(role)]
        if not roles:
            return
        if not history.figure("second_moment_mean"):
            raise CannotJudgeError("the run does not hold the optimizer's second moments")
        for role in roles:
            found, judged = _dominated(history, role)
            if found:
                yield _finding(history, role, found, judged)


def epsilon_dominates(history: History, role: str) -> Cause | None:
    """ε as the reason why steps are short; None if it is not."""
    found, judged = _dominated(history, role) if history.has_second_moments(role) else ({}, 0)
    return _cause(history, role, found) if found and len(found) >= MOST.value * judged else None


def _dominated(history: History, role: str) -> tuple[dict[str, float], int]:
    """Weight matrix → √v/ε where that is small, and how many were judged."""
    moments = history.figure("second_moment_mean")
    judged = [name for name in history.parameters(role, matrices=True) if name in moments]
    ratios = {name: _over_epsilon(history, role, moments[name]) for name in judged}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}, len(judged)


def _over_epsilon(history: History, role: str, series: Series) -> float | None:
    """√v/ε of a parameter's typical step, if it is small at most of them; else None."""
    import numpy as np

    epsilon = history.setting(role, "eps") or 0.0
    decay = history.second_moment_decay(role)
    share = 1.0 - decay ** (series.steps + 1.0) if decay is not None else np.ones(len(series))
    sizes = np.sqrt(series.values / share)
    if not (sizes > 0.0).any():
        return None
    below = sizes < BELOW.value * epsilon
    return float(np.median(sizes[below])) / epsilon if below.mean() >= PERSISTENT.value else None


def _cause(history: History, role: str, found: dict[str, float]) -> Cause:
    epsilon = history.setting(role, "eps") or 0.0
    name = min(found, key=lambda one: found[one])
    text = (
        f"√v of {name} is {number(found[name] * epsilon)} and ε is {number(epsilon)}: "
        f"steps are {number(found[name] / (1.0 + found[name]))} of Adam's."
    )
    return Cause(CauseName.OPTIMIZER_EPSILON_DOMINATES, 0.9, text)


def _finding(history: History, role: str, found: dict[str, float], judged: int) -> Finding:
    try:
        suffers = role in history.learners and history.gained(history.loss(role)) < HALVED.value
    except CannotJudgeError:
        suffers = False
    name = min(found, key=lambda one: found[one])
    share = len(found) / judged
    cause = _cause(history, role, found)
    return Finding(
        code=OptimizerEpsilonDominates.code,
        symptom=Symptom.LOSS_NOT_DECREASING,
        severity=Severity.WARNING if suffers and share >= MOST.value else Severity.NOTE,
        site=name,
        message=f"The optimizer's ε sets the step of {len(found)} of {judged} weight matrices.",
        causes=(cause,),
        evidence=(
            Evidence(cause.evidence, found[name], BELOW.value),
            Evidence(f"It holds for {listing(list(found))}.", share, MOST.value),
        ),
        remedies=remedies((cause,)),
    )
