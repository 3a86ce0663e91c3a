"""Whether the model's very first output was far too large, and what made it so.

Before any step the loss tells the size of the output: of a squared error it is the mean square of
output and target together, and cross-entropy of logits of deviation s costs about s²/2 more than
guessing, while s is small. Where such a training gets no further, the steps had to undo first what
the initial weights had done. If a residual stream grew on the way, that is the reason; else
weights, or products of them, are too large.

References:
    Zhang, Dauphin, Ma, "Fixup Initialization", ICLR 2019 (growth of residual streams).
    Karpathy, "A recipe for training neural networks", 2019 (verify the loss at init).
"""

from __future__ import annotations

import math
from dataclasses import replace

from evenflow.diagnose import limits
from evenflow.diagnose.finding import Cause, CauseName
from evenflow.diagnose.history.history import History
from evenflow.diagnose.history.loss import LossCurve
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.rules.residual_growth import ResidualGrowth
from evenflow.diagnose.text import number

LOUD = 2.0
"""Times the cost of guessing from which the first cross-entropy shows logits that are too large: those of
deviation 1 cost ½ more (the mean of a log-normal), 1.7 times as much for two classes and less for more."""
PROVED = 0.7
"""Confidence: the size of the output is certain, and that it keeps training from getting on is likely (a
judgement; below what unscaled data, which make such outputs too, are given)."""


def output_too_large(history: History, curve: LossCurve) -> list[Cause]:
    """What made the first output far larger than any target; empty if it was not."""
    text = _too_large(history, curve)
    if not text:
        return []
    for flow in history.measured.values():
        try:
            for finding in ResidualGrowth().check(flow):
                grown = f"{text} {finding.message}"
                most = max(cause.confidence for cause in finding.causes)
                return [
                    replace(cause, confidence=PROVED * cause.confidence / most, evidence=grown)
                    for cause in finding.causes
                    if cause.confidence > 0.0
                ]
        except CannotJudgeError:
            continue
    return [Cause(CauseName.INIT_TOO_LARGE, PROVED, text)]


def _too_large(history: History, curve: LossCurve) -> str:
    """The output's size and what was expected, in words; empty if it is not far too large."""
    first, output = float(curve.values[0]), history.output(history.first)
    if output is None or not math.isfinite(first):
        return ""
    if history.target is not None:
        if output.mean_square <= limits.OFF_SCALE.value * history.target.mean_square:
            return ""
        return (
            f"Before any step the output had an RMS of {number(output.rms)}, and the targets one of "
            f"{number(history.target.rms)}."
        )
    cost = history.frequencies  # known of a mean cross-entropy alone
    if cost is None or history.guess is None or first <= LOUD * history.guess.loss:
        return ""
    return f"Before any step the loss was {number(first)}, and guessing costs {number(history.guess.loss)}."
