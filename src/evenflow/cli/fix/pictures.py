"""Before and after a patch, as pictures: the loss over the trials, and the gradient by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from evenflow.fix import Outcome, Tried
from evenflow.flow import Flow, Role
from evenflow.lab.picture import Axis, Curve, Lines
from evenflow.lab.verdict import interval, mean
from evenflow.report.figures import profile

WITHOUT, WITH = "without the patch", "with the patch"


def pictures(outcome: Outcome, tried: Tried) -> Iterator[Lines]:
    """Those of one confirmed patch."""
    both = (WITHOUT, tried.losses_before), (WITH, tried.losses_after)
    decades = all(loss > 0 for _, runs in both for run in runs for loss in run if math.isfinite(loss))
    losses = [curve for name, runs in both if (curve := _loss_curve(name, runs, decades=decades)) is not None]
    if losses:
        other = " The patch puts another loss in place: compare the slopes, not the heights."
        yield Lines(
            "loss",
            "Loss of the trials",
            f"Mean over {len(tried.baseline)} seeds at each step; the band is its 95 % interval."
            + (other if "loss" in tried.patch.touches else ""),
            Axis("step"),
            Axis("loss", decades=decades),
            tuple(losses),
        )
    if tried.flow is not None:
        gradients = [gradient_curve(WITHOUT, outcome.report.flow), gradient_curve(WITH, tried.flow)]
        yield Lines(
            "gradient",
            "Gradient through the net, before any training",
            "RMS of the gradient at each layer's output, from the input to the loss, on the first batch. "
            "A line that falls to the left is a gradient that vanishes on its way to the input.",
            Axis("place in the net, from the input to the loss (0 … 1)"),
            Axis("RMS of the gradient", decades=True),
            tuple(one for one in gradients if one.x),
        )


def gradient_curve(name: str, flow: Flow) -> Curve:
    """log10 RMS of the gradient along the main line; from 0 at the input to 1, for a patch may add layers."""
    readings = [one for one in profile(flow, Role.ACTIVATION_GRADIENT) if one.main]
    last = max(1, len(readings) - 1)
    return Curve(
        name, tuple(i / last for i in range(len(readings))), tuple(one.log10_rms for one in readings)
    )


def _loss_curve(name: str, runs: Sequence[Sequence[float]], *, decades: bool) -> Curve | None:
    length = min(map(len, runs), default=0)
    raw = [[run[step] for run in runs] for step in range(length)]
    finite = [step for step, values in enumerate(raw) if all(map(math.isfinite, values))]
    if not finite:
        return None
    steps = {step: [math.log10(one) if decades else one for one in raw[step]] for step in finite}
    middle = [mean(steps[step]) for step in finite]
    reach = [interval(steps[step]) or (value, value) for step, value in zip(finite, middle, strict=True)]
    return Curve(
        name,
        tuple(map(float, finite)),
        tuple(middle),
        low=tuple(low for low, _ in reach),
        high=tuple(high for _, high in reach),
    )
