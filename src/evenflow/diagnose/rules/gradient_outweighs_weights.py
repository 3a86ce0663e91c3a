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
SET_BACK = Threshold(
    1.2,
    "times its level before the largest gradient at which the loss stays after it, for a finding",
    "a judgement: a rise by as much as a fall must have to count as learning",
)
LEVEL = 5
"""Losses of which the median is the level before a step: a single batch says little."""
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
    thresholds = (OUTWEIGHS, SUFFERS, SET_BACK, OFF_SCALE)
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
‖g‖ over ‖w‖, both over all parameters: ‖g‖ of every step (before clipping where that step
was sampled, else as the optimizer got it), ‖w‖ of the last sampled step. The largest
counts, for one such step is enough to throw the weights away. There is a finding only if
training suffers: the loss has fallen by less than a fifth, or is no number, or stays higher by a
fifth after that step than it was before. Adversarial games are left out, for their losses do not
tell.""",
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
            steps, ratios = over_weights(history, role)
            curve = history.loss(role, at_least=SHORTEST)
            if not (ratios > OUTWEIGHS.value).any():
                return
            stuck = curve.relative_fall < SUFFERS.value or curve.finite_at_end == 0
            if stuck or _set_back(curve, int(steps[ratios.argmax()])):
                yield _finding(history, role, curve, steps, ratios, stuck=stuck)


def _set_back(curve: LossCurve, step: int) -> bool:
    """Whether the loss stays higher after a step than it was before."""
    import numpy as np

    finite = np.isfinite(curve.values)
    before = curve.values[finite & (curve.steps < step)][-LEVEL:]
    after = curve.values[finite & (curve.steps > step)]
    if not before.size or not after.size:
        return False
    level = float(np.median(before))
    return level > 0.0 and float(np.median(after)) > SET_BACK.value * level


def over_weights(history: History, role: str) -> tuple[Integers, Floats]:
    """The steps of which both norms are finite, and gradient over weights there."""
    import numpy as np

    from evenflow.diagnose.suspects import on_steps
    from evenflow.flow import Role

    series = [history.scalar(f"gradient_norm_{when}_clipping", role) for when in ("before", "after")]
    taken = [one for one in series if one is not None and len(one)]
    if not taken:
        raise CannotJudgeError("the run has no norm of the gradient")
    steps = np.unique(np.concatenate([one.steps for one in taken]))
    norms = np.fmax.reduce([on_steps(one, steps) for one in taken])
    weights = history.of(Role.PARAMETER, history.parameters(role), "norm")
    sampled = np.maximum(np.searchsorted(history.steps, steps, side="right") - 1, 0)
    sizes = np.sqrt(np.nansum(weights**2, axis=1))[sampled]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(sizes > 0.0, norms / sizes, np.nan)
    known = np.isfinite(ratios)
    return steps[known], ratios[known]


def _finding(
    history: History, role: str, curve: LossCurve, steps: Integers, ratios: Floats, *, stuck: bool
) -> Finding:
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
        message=f"The gradient is up to {number(largest)} times as large as the weights, and the loss "
        + ("does not come down." if stuck else f"is higher after step {step} than before."),
        causes=causes or (Cause(CauseName.UNKNOWN, 1.0, text),),
        evidence=(Evidence(text, largest, OUTWEIGHS.value),),
        remedies=remedies(causes) or ("Clip the gradient by its norm, and see which layer makes it large.",),
    )
