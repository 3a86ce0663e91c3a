"""What moved first: the tensor whose size left its own range before the loss did.

For every site the log of its RMS is compared, step by step, with its median and
spread over the window before. The site that is farthest out at the earliest step
is named: an update or a weight often leads the loss by a step or two.
"""

from __future__ import annotations

import numpy as np

from evenflow.diagnose.finding import Evidence
from evenflow.diagnose.history.grid import Floats
from evenflow.diagnose.history.history import History
from evenflow.flow import Role

WINDOW = 64
"""Sampled steps that a site's range is taken from (OLMo-core judges spikes against the last 128)."""
BEFORE = 10
"""Sampled steps before the event in which a first mover is looked for (a judgement)."""
OUT = 6.0
"""Deviations that count as out of range, as in OLMo-core's spike rule."""
LEAST_SPREAD = 0.05
"""Decades that a size may always change by (a judgement: a tenth)."""

_WORDS = {
    Role.ACTIVATION: "the output of {}",
    Role.ACTIVATION_GRADIENT: "the gradient at the output of {}",
    Role.PARAMETER: "the weight {}",
    Role.PARAMETER_GRADIENT: "the gradient of {}",
    Role.UPDATE: "the update of {}",
}


def moved_first(history: History, event: int) -> tuple[Evidence, ...]:
    """Which site left its range first, at or shortly before a step; empty if none did.

    Args:
        history: The run.
        event: The step at which something happened.
    """
    end = int(np.searchsorted(history.steps, event, side="right"))
    begin = max(end - BEFORE, 1)
    found: list[tuple[int, float, Role, str]] = []
    for role, grid in history.grids.items():
        with np.errstate(divide="ignore"):
            sizes = np.log10(grid.rms[max(begin - WINDOW, 0) : end])
        sizes[~np.isfinite(sizes)] = np.nan
        bad = grid.nonfinite_count[max(begin - WINDOW, 0) : end] > 0
        before = begin - max(begin - WINDOW, 0)
        score = _deviation(sizes, before)
        score[bad[before:]] = np.inf
        out = (score > OUT).any(axis=1)
        if out.any():
            row = int(out.argmax())
            site = int(score[row].argmax())
            found.append((row, -float(score[row, site]), role, grid.labels[site]))
    if not found:
        return ()
    row, _, role, label = min(found, key=lambda one: one[:2])
    step = int(history.steps[begin + row])
    what = _WORDS[role].format(label or "the model")
    return (Evidence(f"What moved first: {what}, at step {step}.", float(step)),)


def _deviation(sizes: Floats, before: int) -> Floats:
    """How many spreads above the median of the first ``before`` rows the rows after them lie."""
    known = np.isfinite(sizes[:before]).any(axis=0)
    centre = np.full(sizes.shape[1], np.nan)
    spread = np.full(sizes.shape[1], np.nan)
    if known.any():
        centre[known] = np.nanmedian(sizes[:before, known], axis=0)
        spread[known] = 1.4826 * np.nanmedian(np.abs(sizes[:before, known] - centre[known]), axis=0)
    score: Floats = (sizes[before:] - centre) / np.maximum(spread, LEAST_SPREAD)
    return np.nan_to_num(score, nan=0.0)
