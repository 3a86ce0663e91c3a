"""EF106: the gradient is many times larger than the weights that it is to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.limits import OFF_SCALE
from evenflow.diagnose.rule import CannotJudgeError, Page, RunRule, Threshold
from evenflow.diagnose.text import number

if TYPE_CHECKING:
    from evenflow.diagnose.history import History, LossCurve
    from evenflow.diagnose.history.grid import Floats, Integers

OUTWEIGHS = Threshold(
    1000.0,
    "times the norm of all weights that the norm of the whole gradient has",
    "at a learning rate of .001, PyTorch's default for SGD and Adam, one plain step is then as large as the "
    "weights themselves",
)
SUFFERS = Threshold(
    0.2,
    "of its starting level that the loss has fallen by at most, for a finding",
    "a judgement, the same as in EF605: adaptive steps and clipping cope with gradients of any size",
)


SHORTEST = 2
"""Losses that it needs: a run that breaks at once has few."""


@final
class GradientOutweighs(RunRule):
    """Compares the norm of the whole gradient with that of all weights, step by step."""

    code = "EF106"
    name = "gradient_outweighs_weights"
    symptom = Symptom.EXPLODING_GRADIENT
    summary = "The gradient is a thousand times as large as the weights, and training does not get on."
    causes = (
        CauseName.UNSCALED_INPUT,
        CauseName.UNSCALED_TARGET,
        CauseName.RECURRENT_GAIN_TOO_LARGE,
        CauseName.LEARNING_RATE_TOO_HIGH,
        CauseName.UNKNOWN,
    )
    thresholds = (OUTWEIGHS, SUFFERS, OFF_SCALE)
    page = Page(
        what="""\
The gradient as a whole is so large that no usual learning rate suits it. Plain steps
throw the weights away at once; clipping and Adam keep their direction alone, and the
loss hardly moves against its own size.""",
        why="""\
A loss of the square of large numbers has a gradient as large: targets or inputs that
were not scaled. Or the signal, or the gradient on its way back, grows in every layer or
time step (EF102, EF104, EF302, EF404 say where).""",
        mathematics="""\
A step of plain gradient descent changes the weights by η‖g‖/‖w‖ of their norm. Inputs c
times as large make outputs and weight gradients c times as large, a squared error c²
times; the learning rate that is stable goes as 1/c².""",
        detection="""\
‖g‖ before clipping over ‖w‖, both over all parameters, at the sampled steps. The largest
counts, for one such step is enough to throw the weights away. There is a finding only if
training suffers: the loss has fallen by less than a fifth, or is no number. Adversarial games
are left out, for their losses do not tell.""",
        remedies="""\
Standardise inputs and targets; initialise for the activation; normalise; clip the
gradient by its norm.""",
        references=(
            "LeCun, Bottou, Orr, Müller, Efficient BackProp, 1998, section 4.3 (scaling the inputs).",
            "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013.",
        ),
    )

    def check_run(self, history: History) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.RunRule`."""
        for role in history.learners[:1]:
            steps, ratios = _ratios(history, role)
            curve = history.loss(role, at_least=SHORTEST)
            suffers = curve.relative_fall < SUFFERS.value or curve.finite_at_end == 0
            if suffers and (ratios > OUTWEIGHS.value).any():
                yield _finding(history, role, curve, steps, ratios)


def _ratios(history: History, role: str) -> tuple[Integers, Floats]:
    """The sampled steps of which both norms are finite, and gradient over weights there."""
    import numpy as np

    from evenflow.diagnose.suspects import on_steps
    from evenflow.flow import Role

    series = history.scalar("gradient_norm_before_clipping", role)
    if series is None or not len(series):
        series = history.scalar("gradient_norm_after_clipping", role)
    if series is None or not len(series):
        raise CannotJudgeError("the run has no norm of the gradient")
    norms = history.of(Role.PARAMETER, history.parameters(role), "norm")
    weights = np.sqrt(np.nansum(norms**2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(weights > 0.0, on_steps(series, history.steps) / weights, np.nan)
    known = np.isfinite(ratios)
    return history.steps[known], ratios[known]


def _finding(history: History, role: str, curve: LossCurve, steps: Integers, ratios: Floats) -> Finding:
    from evenflow.diagnose.recurrent_suspects import recurrent_gain
    from evenflow.diagnose.suspects import steps_too_large, unscaled_input, unscaled_target

    largest = float(ratios.max())
    step = int(steps[ratios.argmax()])
    asked = (unscaled_input(history), unscaled_target(history, curve), recurrent_gain(history))
    causes = tuple(cause for cause in asked if cause is not None)
    if not causes and ratios[0] < OUTWEIGHS.value:
        causes = tuple(c for c in (steps_too_large(history, role, curve),) if c is not None)
    text = f"At step {step} the gradient's norm is {number(largest)} times that of all weights."
    return Finding(
        code=GradientOutweighs.code,
        symptom=Symptom.EXPLODING_GRADIENT,
        severity=Severity.WARNING,
        site=role or "optimizer",
        message=f"The gradient is up to {number(largest)} times as large as the weights, and the loss does "
        "not come down.",
        causes=causes or (Cause(CauseName.UNKNOWN, 1.0, text),),
        evidence=(Evidence(text, largest, OUTWEIGHS.value),),
        remedies=remedies(causes) or ("Clip the gradient by its norm, and see which layer makes it large.",),
    )
