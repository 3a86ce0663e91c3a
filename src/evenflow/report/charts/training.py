"""A run over its steps: losses as lines, gradients by layer as a map."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evenflow.flow import Series
from evenflow.report.charts.base import Spec, chart, decade_ticks, keys, label_axis, whole_decades
from evenflow.report.charts.profile import STATE_WORDS
from evenflow.report.figures import History, State
from evenflow.report.text import place_name, power_of_ten, printable, scientific

_MOST_POINTS = 2000
"""Points of a line that a screen can tell apart."""
_DECADES_FOR_LOG = 100.0
"""A loss that falls by more than this factor is drawn on a logarithmic axis."""
_ROW = 14


def loss_chart(series: Mapping[str, Series]) -> Spec:
    """One line for each loss; steps at which it is NaN or infinite are marked at the upper edge."""
    rows, odd = [], []
    for name, one in series.items():
        stride = math.ceil(len(one) / _MOST_POINTS)
        for step, value in zip(one.steps[::stride].tolist(), one.values[::stride].tolist(), strict=True):
            row = {"loss": printable(name), "step": step, "value": value if math.isfinite(value) else None}
            rows.append(row | {"told": f"{value:.4g}"})
            if row["value"] is None:
                odd.append(row | {"told": str(value)})
    known = [row["value"] for row in rows if row["value"] is not None]
    log = bool(known) and min(known) > 0 and max(known) > _DECADES_FOR_LOG * min(known)
    x = {
        "field": "step",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False},
        "axis": {"title": "step", "grid": False, "format": "d", "tickMinStep": 1},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "scale": {"type": "log" if log else "linear", "zero": False},
        "axis": {"title": "loss"},
    }
    colour = {
        "field": "loss",
        "type": "nominal",
        "scale": {"range": [f"var(--series-{hue})" for hue in range(1, 9)]},
        "legend": None if len(series) == 1 else {"orient": "top", "title": None},
    }
    tip = [{"field": "loss"}, {"field": "step"}, {"field": "told", "title": "value"}]
    line = {"type": "line", "strokeWidth": 2, "invalid": "break-paths-show-domains"}
    edge = {"type": "point", "shape": "cross", "size": 60, "strokeWidth": 2}
    layers: list[Spec] = [
        {
            "data": {"values": rows},
            "mark": {**line, "point": {"size": 40, "opacity": 0}},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tip},
        }
    ]
    if odd:
        encoding = {"x": x, "y": {"value": 6}, "color": {"value": "var(--error)"}, "tooltip": tip}
        layers.append({"data": {"values": odd}, "mark": edge, "encoding": encoding})
    return chart(layers, 240)


def training_map(history: History) -> Spec:
    """Places from top to bottom, steps from left to right; the darker a cell, the larger the level."""
    names = dict(zip(history.places, keys([place_name(place) for place in history.places]), strict=True))
    column = {step: str(position) for position, step in enumerate(history.steps)}
    cells = [
        {
            "key": names[cell.place],
            "column": column[cell.step],
            "place": place_name(cell.place),
            "step": cell.step,
            "level": cell.log10_rms,
            "told": STATE_WORDS[cell.state] if cell.log10_rms is None else scientific(cell.log10_rms),
        }
        for cell in history.cells
    ]
    known = [cell for cell in cells if cell["level"] is not None]
    dead = {id(cell) for cell, one in zip(cells, history.cells, strict=True) if one.state is State.ZERO}
    low, high = whole_decades([cell.log10_rms for cell in history.cells if cell.log10_rms is not None])
    labels = label_axis({float(tick): power_of_ten(tick) for tick in decade_ticks(low, high)})
    every = math.ceil(len(history.steps) / 10)
    label = " : ".join(f"datum.value === '{column[step]}' ? '{step}'" for step in history.steps[::every])
    x = {
        "field": "column",
        "type": "ordinal",
        "scale": {"domain": list(column.values()), "paddingInner": 0},
        "axis": {
            "title": "sampled step",
            "labelAngle": 0,
            "values": [column[step] for step in history.steps[::every]],
            "labelExpr": f"{label} : ''",
            "ticks": False,
        },
    }
    y = {
        "field": "key",
        "type": "ordinal",
        "scale": {"domain": list(names.values())},
        "axis": {"title": None, "labelLimit": 180, "labelOverlap": "greedy"},
    }
    shade = {
        "field": "level",
        "type": "quantitative",
        "scale": {"domain": [low, high], "range": [0.06, 1], "clamp": True},
        "legend": {
            "orient": "right",
            "title": "RMS",
            "symbolType": "square",
            "values": labels["values"],
            "labelExpr": labels["labelExpr"],
        },
    }
    tip = [{"field": "place"}, {"field": "step"}, {"field": "told", "title": "RMS"}]
    layers: list[Spec] = [
        {
            "data": {"values": known},
            "mark": {"type": "rect", "color": "var(--measured)"},
            "encoding": {"x": x, "y": y, "opacity": shade, "tooltip": tip},
        }
    ]
    for rows, hue in (
        ([cell for cell in cells if id(cell) in dead], "var(--muted)"),
        ([cell for cell in cells if cell["level"] is None and id(cell) not in dead], "var(--error)"),
    ):
        if rows:
            encoding = {"x": x, "y": y, "color": {"value": hue}, "tooltip": tip}
            layers.append({"data": {"values": rows}, "mark": {"type": "rect"}, "encoding": encoding})
    return chart(layers, max(160, _ROW * len(history.places)))
