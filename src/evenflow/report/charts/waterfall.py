"""The waterfall: floating bars from the loss at the top to the input at the bottom."""

from __future__ import annotations

import math

from evenflow.report.charts.base import Spec, chart, keys, level_scale, whole_decades
from evenflow.report.figures import Step, Waterfall
from evenflow.report.text import clip, decades, factor, printable, shorten, step_name

_TOTAL = "in all"

_ROW = 21
"""Height of a step, in pixels."""

_NUMBERS = 72
"""Width of the column of numbers, in pixels."""


def waterfall_chart(fall: Waterfall) -> Spec:
    """One bar for each step, and one for the whole way."""
    ends = [level for s in fall.steps for level in (s.log10_before, s.log10_after) if math.isfinite(level)]
    low, high = whole_decades(ends)
    extra: dict[float, str] = {}
    if any(level == -math.inf for s in fall.steps for level in (s.log10_before, s.log10_after)):
        low -= (high - low) * 0.09
        extra[low] = "zero"
    titles = [_title(s) for s in fall.steps]
    rows = [_row(key, s, low) for key, s in zip(keys(titles, 46), fall.steps, strict=True)]
    if fall.steps:
        first, last = fall.steps[0], fall.steps[-1]
        whole = Step(_TOTAL, _TOTAL, 1, first.log10_before, last.log10_after)
        rows.append({**_row(_TOTAL, whole, low), "what": _TOTAL})
    names = [row["key"] for row in rows]
    x = {**level_scale(low, high, "norm of the gradient", extra), "field": "from"}
    x["axis"]["orient"] = "top"
    y = {
        "field": "key",
        "type": "ordinal",
        "scale": {"domain": names, "paddingInner": 0.25},
        "axis": {
            "title": None,
            "labelLimit": {"expr": "containerSize()[0] < 520 ? 120 : 300"},
            "labelColor": "var(--ink)",
            "ticks": False,
            "domain": False,
            "offset": _NUMBERS,
            "labelPadding": 4,
        },
    }
    colour = {
        "field": "what",
        "type": "nominal",
        "scale": {
            "domain": ["loses", "gains", _TOTAL],
            "range": ["var(--loss)", "var(--gain)", "var(--total)"],
        },
        "legend": None,
    }
    tip = [
        {"field": "title", "title": "step"},
        {"field": "gain", "title": "gain in decades"},
        {"field": "factor", "title": "as a factor"},
    ]
    data = {"values": rows}
    text = {"type": "text", "align": "right", "color": "var(--ink)"}
    return chart(
        [
            {
                "data": data,
                "mark": {"type": "bar", "cornerRadius": 2, "minBandSize": 4},
                "encoding": {"x": x, "x2": {"field": "to"}, "y": y, "color": colour, "tooltip": tip},
            },
            {
                "data": data,
                "mark": text,
                "encoding": {"x": {"value": -8}, "y": y, "text": {"field": "gain"}},
            },
        ],
        _ROW * len(rows),
    )


def _title(step: Step) -> str:
    name = shorten(step_name(step.first, step.last, step.links), 30)
    return name if step.kind in ("", "loss") else f"{name}  {clip(printable(step.kind), 14)}"


def _row(key: str, step: Step, low: float) -> Spec:
    start, stop = (low if level == -math.inf else level for level in (step.log10_before, step.log10_after))
    return {
        "key": key,
        "title": step_name(step.first, step.last, step.links),
        "from": start,
        "to": stop,
        "gain": decades(step.log10_gain),
        "factor": factor(step.log10_gain),
        "what": "loses" if step.log10_gain < 0 else "gains",
    }
