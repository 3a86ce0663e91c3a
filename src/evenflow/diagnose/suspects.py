"""Why a loss does not fall: step size, data and recurrence, each asked of the numbers of the run.

The step size is judged by what steps do, not by the learning rate itself:

* *Polyak's ratio* lr·‖g‖²/L of plain gradient steps. To first order one step
  lowers the loss by lr·‖g‖²; where that is several times the whole loss, the
  linear picture is left behind and the step overshoots.
* *Update over weight*, for any optimizer.
* *The response*: a loss that leaps up in the first steps.
* *The first output*: see :mod:`evenflow.diagnose.first_output`.
* *Steps to go*: no step can lower the loss by more than Σ‖g_p‖‖u_p‖ to first
  order. The loss over that is the least number of steps to reach zero.

References:
    B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    J. Cohen et al., "Gradient descent on neural networks typically occurs at the edge
    of stability", ICLR 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evenflow.diagnose import limits
from evenflow.diagnose.finding import Cause, CauseName
from evenflow.diagnose.first_output import output_too_large
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.history.grid import Floats, Integers
from evenflow.diagnose.history.history import History
from evenflow.diagnose.history.loss import LossCurve
from evenflow.diagnose.recurrent_suspects import long_recurrence, recurrent_gain
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.rules.clipping_always_active import clipped_hard
from evenflow.diagnose.rules.optimizer_epsilon_dominates import epsilon_dominates
from evenflow.diagnose.rules.update_lost_to_rounding import rounding_swallows
from evenflow.diagnose.text import number, percent
from evenflow.diagnose.unasked import unasked_heads
from evenflow.flow import Role, Series

EARLY = 0.1
"""Part of a run that counts as its beginning."""
WEAK = 0.3
"""Confidence in a suspect that no number proves: less than in any other (a judgement)."""


def suspects(history: History, role: str, curve: LossCurve) -> tuple[Cause, ...]:
    """What the numbers hold against data, recurrence and step size, best first; ``unknown`` if nothing."""
    small = steps_too_small(history, role, curve)
    shortened = None
    if small is not None:
        shortened = (
            clipped_hard(history, role) or epsilon_dominates(history, role) or rounding_swallows(history)
        )
    loud = [unscaled_input(history), unscaled_target(history, curve), recurrent_gain(history)]
    found = [
        *loud,
        long_recurrence(history),
        unasked_heads(history, role),
        steps_too_large(history, role, curve),
        small if shortened is None else shortened,
    ]
    if not any(loud):  # each of which makes large outputs by itself
        found += output_too_large(history, curve)
    causes = sorted((cause for cause in found if cause is not None), key=lambda cause: -cause.confidence)
    if causes:
        return tuple(causes)
    text = "Neither the size of the steps nor that of inputs and targets explains it, nor a recurrence."
    return (Cause(CauseName.UNKNOWN, 1.0, text),)


def by_rule_of_thumb(history: History, role: str) -> Cause | None:
    """The step size as a weak suspect where there is no better one: it is not what is usual."""
    size, usual = typical_update(history, role), limits.USUAL_UPDATE.value
    if size is None or usual <= size <= 10.0 * usual or has_no_gradient(history, role):
        return None
    small = size < usual
    text = (
        f"An update is {number(size)} of the weights, {'less' if small else 'more'} than the usual "
        f"{number(usual)} to {number(10.0 * usual)}; no number of this run proves that this is the reason."
    )
    name = CauseName.LEARNING_RATE_TOO_LOW if small else CauseName.LEARNING_RATE_TOO_HIGH
    return Cause(name, WEAK, text)


def steps_too_large(history: History, role: str, curve: LossCurve) -> Cause | None:
    """Whether steps overshoot: by Polyak's ratio, by the loss's leap, or by their size."""
    name = CauseName.LEARNING_RATE_TOO_HIGH
    ratio = polyak_ratio(history, role, curve)
    if ratio is not None and ratio > limits.POLYAK.value:
        text = (
            f"To first order a step would lower the loss by {number(ratio)} times its whole value "
            f"(the median of lr·‖g‖²/loss; above {limits.POLYAK.value:g} steps overshoot)."
        )
        return Cause(name, 0.9, text)
    size = largest_early_update(history, role)
    leap = first_leap(curve)
    if leap > limits.LEAP.value and (size is None or size > limits.SMALL_UPDATE.value):
        text = (
            f"In the first steps the loss leapt from {number(curve.start)} to {number(leap * curve.start)}."
        )
        if size is not None:
            text += f" One update was {percent(size)} of the weights."
        return Cause(name, 0.8, text)
    if size is not None and size > limits.LARGE_UPDATE.value:
        text = f"In the first steps one update was {percent(size)} of the typical weight matrix."
        return Cause(name, 0.6, text)
    return None


def overshoots(history: History, role: str, curve: LossCurve) -> bool:
    """Whether the loss itself, and not only the size of updates, shows that steps are too large."""
    ratio = polyak_ratio(history, role, curve)
    if ratio is not None and ratio > limits.POLYAK.value:
        return True
    size = largest_early_update(history, role)
    return first_leap(curve) > limits.LEAP.value and (size is None or size > limits.SMALL_UPDATE.value)


def steps_too_small(history: History, role: str, curve: LossCurve, longer: float = 10.0) -> Cause | None:
    """Whether the loss cannot come down in ``longer`` times the steps taken, because they are tiny.

    Tiny is an update that is small by itself, or a run whose updates all together, were
    they all in one direction, would not make one large update.
    """
    if has_no_gradient(history, role):
        return None
    size, to_go = typical_update(history, role), steps_to_go(history, role, curve)
    if size is None or to_go is None or to_go < longer * max(len(curve), limits.PATIENCE.value):
        return None
    whole = size * len(curve)
    if size > limits.SMALL_UPDATE.value and whole > limits.LARGE_UPDATE.value:
        return None
    text = (
        f"An update is {number(size)} of the weights, all {len(curve)} together are {percent(whole)} of them "
        f"at most, and at this speed the loss needs at least {number(to_go)} steps to come down."
    )
    return Cause(CauseName.LEARNING_RATE_TOO_LOW, 0.8, text)


def has_no_gradient(history: History, role: str) -> bool:
    """Whether the gradient of the typical weight matrix is exactly zero, so that no step size moves it."""
    sizes = history.of(Role.PARAMETER_GRADIENT, history.parameters(role, matrices=True))
    known = sizes[np.isfinite(sizes)]
    return bool(known.size) and float(np.median(known)) == 0.0


def is_fine_tuning(history: History, role: str, curve: LossCurve) -> bool:
    """Whether the model knew something from the start.

    A cross-entropy below that of guessing needs logits that differ: with all of
    them within ±a it is ln C − 2a at least. What lies lower is another loss. A
    single output may belong to either, and counts only if its steps are tiny.
    A mean squared error is compared with the variance of its targets, if that is known.
    """
    if history.variance is not None:
        return curve.start < limits.KNOWS_MORE.value * history.variance
    guess, first = history.guess, history.output(history.first)
    if guess is None or first is None or curve.start >= limits.KNOWS_MORE.value * guess.loss:
        return False
    if guess.classes > 1:
        return curve.start >= guess.loss - 2.0 * (first.abs_max or 0.0)
    size = typical_update(history, role)
    return size is not None and size < limits.SMALL_UPDATE.value


def polyak_ratio(history: History, role: str, curve: LossCurve) -> float | None:
    """Median of lr·‖g‖·‖g_clipped‖/loss over the sampled steps; None unless steps are along the gradient."""
    if not history.is_sgd(role):
        return None
    rate, after = history.scalar("lr", role), history.scalar("gradient_norm_after_clipping", role)
    before = history.scalar("gradient_norm_before_clipping", role)
    if rate is None or after is None:
        return None
    raw = after if before is None else before
    steps = np.intersect1d(np.intersect1d(rate.steps, after.steps), raw.steps)
    if not steps.size:
        return None
    loss = curve.at(steps)
    gain = on_steps(rate, steps) * on_steps(after, steps) * on_steps(raw, steps)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(loss > 0.0, gain / loss, np.nan)
    known = ratio[np.isfinite(ratio)]
    return float(np.median(known)) if known.size else None


def largest_early_update(history: History, role: str) -> float | None:
    """Over the first steps, the largest update over weight of the typical (median) weight matrix."""
    by_step = _typical_ratio(history, role)
    early = by_step[: max(math.ceil(EARLY * len(by_step)), 3)]
    known = early[np.isfinite(early)]
    return float(known.max()) if known.size else None


def largest_update(history: History, role: str) -> float | None:
    """Over all sampled steps, the largest update over weight of the typical (median) weight matrix."""
    known = _typical_ratio(history, role)
    known = known[np.isfinite(known)]
    return float(known.max()) if known.size else None


def typical_update(history: History, role: str) -> float | None:
    """Median over all sampled steps of the typical matrix's update over weight."""
    known = _typical_ratio(history, role)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else None


@dataclass(frozen=True, slots=True)
class Gain:
    """√fan_in · RMS of the typical (median) weight matrix, at the first sampled step and at the last."""

    first: float
    last: float


def typical_gain(history: History, role: str) -> Gain | None:
    """By how much the typical weight matrix of a role scales what it reads; None if none is known."""
    if history.first is None:
        return None
    fans = {
        row.site.path: math.prod(row.shape[1:])
        for row in history.first.select(Role.PARAMETER)
        if len(row.shape) >= 2
    }
    labels = [label for label in history.parameters(role, matrices=True) if label in fans]
    gains = history.of(Role.PARAMETER, labels) * np.sqrt([fans[label] for label in labels])
    if not np.isfinite(gains[[0, -1]]).any(axis=1).all():
        return None
    first, last = np.nanmedian(gains[[0, -1]], axis=1).tolist()
    return Gain(first, last)


def steps_to_go(history: History, role: str, curve: LossCurve) -> float | None:
    """The least number of steps, to first order, that take the loss from its end to zero."""
    labels = history.parameters(role)
    gradients = history.of(Role.PARAMETER_GRADIENT, labels, "norm")
    updates = history.of(Role.UPDATE, labels, "norm")
    gains = np.nansum(gradients * updates, axis=1)
    known = gains[np.isfinite(gains)]
    if not known.size:
        return None
    gain = float(np.median(known))
    return abs(curve.end) / gain if gain > 0.0 else math.inf


def first_leap(curve: LossCurve) -> float:
    """The largest loss of the first steps over the one it started from; what is no number proves no leap."""
    early = curve.values[1 : max(math.ceil(EARLY * len(curve)), 5)]
    early = early[np.isfinite(early)]
    first = float(curve.values[0])
    if not first > 0.0 or not early.size:
        return 0.0
    return float(max(early.max() - 2.0 * curve.noise, 0.0)) / first


def growth(history: History, role: str, curve: LossCurve, step: int) -> float:
    """By how much the loss, the gradient's norm or a weight grew before a step, whichever grew most."""
    before = curve.values[(curve.steps < step) & np.isfinite(curve.values)]
    grown = [float(before.max() / before[0])] if before.size and before[0] > 0.0 else []
    norm = history.scalar("gradient_norm_after_clipping", role)
    if norm is not None and len(norm):
        sizes = norm.values[norm.steps <= step]
        sizes = sizes[np.isfinite(sizes) & (sizes > 0.0)]
        grown += [float(sizes.max() / sizes[0])] if sizes.size else []
    weights = history.of(Role.PARAMETER, history.parameters(role, matrices=True))[history.steps <= step]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = weights / weights[:1]
    known = ratios[np.isfinite(ratios)]
    grown += [float(known.max())] if known.size else []
    return max(grown, default=1.0)


def unscaled_input(history: History) -> Cause | None:
    """Whether the first layer reads numbers that are far too large."""
    size = input_size(history)
    if size is None or size < limits.OFF_SCALE.value:
        return None
    text = f"The inputs have an RMS of about {number(size)}; 1 is expected."
    return Cause(CauseName.UNSCALED_INPUT, 0.95, text)


def input_size(history: History) -> float | None:
    """RMS of what the first layer reads at the first sampled step, by its output and its weights."""
    if history.first is None:
        return None
    try:
        graph = op_graph(history.flow_in_ops(int(history.steps[0])))
    except CannotJudgeError:
        return None
    first = next((row for row in graph.gradients.values() if graph.is_layer(row) and not row.inputs), None)
    return None if first is None or first.site.op.startswith("embedding") else graph.input_rms(first)


def unscaled_target(history: History, curve: LossCurve) -> Cause | None:
    """Whether the loss at the start is that of targets far larger than what the network gives."""
    output = history.output(history.first)
    if output is None:
        return None
    root = math.sqrt(max(float(curve.finite[0]), 0.0))
    if history.gives_probabilities or is_summed(history, float(curve.finite[0])):
        return None
    if root < limits.OFF_SCALE.value or root < limits.OFF_SCALE.value * output.rms:
        return None
    text = (
        f"The loss starts at {number(root**2)} while the output has an RMS of {number(output.rms)}: "
        f"as a squared error that is targets of about {number(root)}; 1 is expected."
    )
    return Cause(CauseName.UNSCALED_TARGET, 0.95, text)


def is_summed(history: History, loss: float) -> bool:
    """Whether a first loss is that of guessing, added up over all rows of the output instead of averaged."""
    guess, output = history.guess, history.output(history.first)
    if guess is None or output is None or output.count <= guess.classes:
        return False
    rows = output.count / guess.classes
    return abs(math.log(max(loss, 1e-300) / (rows * guess.loss))) < math.log(limits.LEAP.value)


def _typical_ratio(history: History, role: str) -> Floats:
    """The median matrix's update over weight at each sampled step; NaN where none is known."""
    _, ratios = history.update_ratios(role)
    typical = np.full(len(ratios), np.nan)
    known = np.isfinite(ratios).any(axis=1)
    if known.any():
        typical[known] = np.nanmedian(ratios[known], axis=1)
    return typical


def on_steps(series: Series, steps: Integers) -> Floats:
    """A figure at some steps; NaN where it was not taken."""
    where = np.minimum(np.searchsorted(series.steps, steps), len(series) - 1)
    return np.where(series.steps[where] == steps, series.values[where], np.nan)
