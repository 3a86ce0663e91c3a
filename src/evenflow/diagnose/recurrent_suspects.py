"""What a recurrence holds against itself where training suffers: its gain, and its length.

A run holds no time steps, its first batch does. Along time the gradient is
multiplied by the same factor ρ at every step, so it is a straight line in
logarithms. A loss at every step adds up to T equal parts on top: from the middle of
the sequence back to its beginning that is a factor of 2 at most, so what the
earlier half gains beyond it is ρ's doing, whatever the loss reads.

The weights speak for later steps: a plain recurrence whose W_hh has a spectral radius
√n · RMS above 1 amplifies unless its activation saturates (EF104).

References:
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, section 2.1; Ginibre, J. Math. Phys. 1965 (the radius).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evenflow.diagnose import limits
from evenflow.diagnose.finding import Cause, CauseName
from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.history.history import History
from evenflow.diagnose.recurrence import TimeProfile, profiles, worst_states
from evenflow.diagnose.rule import CannotJudgeError
from evenflow.diagnose.text import factor, module_name
from evenflow.flow import Flow, Role

BY_STEPS = 0.4
"""Confidence in a gain that was not there at first (a judgement: less than even, for steps made it)."""


def recurrent_gain(history: History) -> Cause | None:
    """Whether a recurrence amplifies: the first batch's gradient along time, or the weights' radius."""
    name = CauseName.RECURRENT_GAIN_TOO_LARGE
    every = [profile for flow in history.measured.values() for profile in _profiles(flow)]
    steepest = max(every, key=amplified, default=None)
    if steepest is not None and amplified(steepest) > limits.AMPLIFIED.value:
        grown = factor(amplified(steepest))
        text = (
            f"In the first batch the gradient grows {grown} times along the {steepest.steps} time steps of "
            f"{module_name(steepest.place)}."
        )
        return Cause(name, 0.9, text)
    found = [(radii, label) for label, radii in _radii(history) if np.isfinite(radii).any()]
    if not found:
        return None
    radii, label = max(found, key=lambda one: float(np.nanmax(one[0])))
    first, largest = float(radii[np.isfinite(radii)][0]), float(np.nanmax(radii))
    if largest <= limits.UNIT_RADIUS.value:
        return None
    text = (
        f"{label} has a spectral radius of about {first:.2g} at first and {largest:.2g} at most (√n · RMS); "
        f"{limits.UNIT_RADIUS.value:g} keeps the gradient."
    )
    return Cause(name, 0.6 if first > limits.UNIT_RADIUS.value else BY_STEPS, text)


def long_recurrence(history: History) -> Cause | None:
    """Whether the first batch's gradient is lost along time."""
    for flow in history.measured.values():
        for profile in worst_states(_profiles(flow), limits.LOST_IN_TIME.value):
            lost = profile.lost(limits.LOST_IN_TIME.value)
            if lost > 0:
                text = (
                    f"In the first batch {lost} of {profile.steps} time steps of "
                    f"{module_name(profile.place)} get less than a thousandth of the last one's gradient."
                )
                return Cause(CauseName.LONG_RECURRENCE, 0.7, text)
    return None


def amplified(profile: TimeProfile) -> float:
    """Decades that a whole recurrence gains going back, at the pace of its earlier half."""
    norms = [norm for norm in profile.log10_norms[: profile.steps // 2 + 1] if math.isfinite(norm)]
    return 2.0 * (norms[0] - norms[-1] - math.log10(2.0)) if len(norms) > 1 else 0.0


def _profiles(flow: Flow) -> Iterator[TimeProfile]:
    try:
        yield from profiles(flow, op_graph(flow))
    except CannotJudgeError:
        return


def _radii(history: History) -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.float64]]]]:
    """Square weights from state to state, and their radius at each sampled step."""
    if history.first is None:
        return
    for row in history.first.select(Role.PARAMETER):
        is_square = len(row.shape) == 2 and row.shape[0] == row.shape[1]
        if is_square and row.site.path.rpartition(".")[2].startswith("weight_hh"):
            sizes = history.of(Role.PARAMETER, [row.site.path])[:, 0]
            yield row.site.path, math.sqrt(row.shape[0]) * sizes
