"""The gradient over time steps: one line for each recurrent state."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.report.charts.base import Spec, chart, keys, level_scale, whole_decades
from evenflow.report.charts.profile import STATE_WORDS
from evenflow.report.figures import Curve, State
from evenflow.report.text import printable, scientific

_HUES = tuple(f"var(--series-{number})" for number in range(1, 9))


def time_chart(curves: Sequence[Curve], predicted: Sequence[Curve] = ()) -> Spec:
    """Levels by time step; predicted ones dashed in the same colour."""
    names = dict(zip((c.state for c in curves), keys([printable(c.state) for c in curves]), strict=True))
    rows = [row for c in curves for row in _rows(c, names[c.state], "measured")]
    dashed = [row for c in predicted if c.state in names for row in _rows(c, names[c.state], "predicted")]
    low, high = whole_decades([row["level"] for row in (*rows, *dashed) if row["level"] is not None])
    odd = [row for row in rows if row["level"] is None]
    extra: dict[float, str] = {}
    if odd:
        low -= (high - low) * 0.09
        extra[low] = "zero"
    for row in odd:
        row["edge"] = low
    x = {
        "field": "time",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False},
        "axis": {"title": "time step of the sequence", "grid": False, "tickMinStep": 1, "format": "d"},
    }
    y = level_scale(low, high, "RMS of the gradient", extra)
    colour = {
        "field": "key",
        "type": "nominal",
        "scale": {"domain": list(names.values()), "range": list(_HUES)},
        "legend": {"orient": "top", "title": None, "columns": 2, "labelLimit": 240},
    }
    tip = [
        {"field": "state", "title": "state"},
        {"field": "time", "title": "time step"},
        {"field": "value", "title": "RMS"},
    ]
    line = {"type": "line", "strokeWidth": 2.5, "invalid": "break-paths-show-domains"}
    parts = [
        (rows, "level", {**line, "point": {"size": 60, "opacity": 0}}),
        (dashed, "level", {**line, "strokeDash": [6, 4]}),
        (odd, "edge", {"type": "point", "size": 50, "strokeWidth": 2}),
    ]
    return chart(
        [
            {
                "data": {"values": values},
                "mark": mark,
                "encoding": {"x": x, "y": {**y, "field": field}, "color": colour, "tooltip": tip},
            }
            for values, field, mark in parts
            if values
        ],
        300,
    )


def _rows(curve: Curve, key: str, source: str) -> list[Spec]:
    return [
        {
            "key": key,
            "state": printable(curve.state),
            "source": source,
            "time": time,
            "level": level,
            "value": scientific(level) if level is not None else STATE_WORDS[state],
        }
        for time, state, level in curve.points
        if state is not State.ABSENT
    ]
