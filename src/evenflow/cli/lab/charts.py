"""Pictures of the lab as Vega-Lite specifications, in the look of the report's own.

Curves of one name share a colour; measured ones are drawn through, expected ones
dashed. Bands are intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from evenflow.lab.picture import Axis, Curve, HeatMap, Lines, Origin, Picture
from evenflow.lab.verdict import number
from evenflow.report.charts import Spec
from evenflow.report.charts.base import chart, level_scale, whole_decades

_HUES = [f"var(--series-{hue})" for hue in range(1, 9)]
_DIVERGING = ["#1f5fb8", "#f4f1ea", "#b8322f"]
"""Blue, nothing, red: readable without green, and on light and dark pages."""
_EDGE = "#111111"
_HEIGHT = 340


def spec(picture: Picture) -> Spec:
    """The specification of any picture."""
    return _lines(picture) if isinstance(picture, Lines) else _map(picture)


def _lines(picture: Lines) -> Spec:
    x = _x_scale(picture.x, [value for curve in picture.curves for value in curve.x])
    y = _y_scale(picture.y, picture.curves)
    names = list(dict.fromkeys(curve.name for curve in picture.curves))
    colour = {
        "field": "curve",
        "type": "nominal",
        "scale": {"domain": names, "range": [_HUES[i % len(_HUES)] for i in range(len(names))]},
        "legend": {
            "orient": "top",
            "title": None,
            "columns": 3,
            "labelLimit": 260,
            "symbolType": "stroke",
            "symbolOpacity": 1,
        },
    }
    rows = [row for line, curve in enumerate(picture.curves) for row in _rows(line, curve)]
    bands = [row for row in rows if row["low"] is not None and row["low"] < row["high"]]
    tip = [
        {"field": "curve", "title": "curve"},
        {"field": "origin", "title": "is"},
        {"field": "x", "title": picture.x.title},
        {"field": "told", "title": "log10" if picture.y.decades else picture.y.title},
    ]
    shared = {"x": x, "color": colour, "detail": {"field": "line"}}
    layers: list[Spec] = []
    if bands:
        encoding = {**shared, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.append(
            {"data": {"values": bands}, "mark": {"type": "area", "opacity": 0.16}, "encoding": encoding}
        )
    dash = {
        "field": "origin",
        "type": "nominal",
        "scale": {"domain": [str(Origin.MEASURED), str(Origin.EXPECTED)], "range": [[1, 0], [6, 4]]},
        "legend": None,
    }
    line = {"type": "line", "strokeWidth": 2, "clip": True, "invalid": "break-paths-show-domains"}
    level = {**shared, "y": {**y, "field": "y"}}
    layers.append({"data": {"values": rows}, "mark": line, "encoding": {**level, "strokeDash": dash}})
    drawn = [row for row in rows if row["y"] is not None]
    measured = [row for row in drawn if row["origin"] == Origin.MEASURED]
    length = Counter(row["line"] for row in measured)
    few = _few(picture)
    lone = [row for row in measured if few or length[row["line"]] == 1]  # a line of one point is none
    crowded = [row for row in measured if not few and length[row["line"]] > 1]
    for shown, opacity in ((lone, 1), (crowded, 0)):
        if shown:
            dots = {"type": "point", "size": 45, "filled": True, "opacity": opacity}
            layers.append({"data": {"values": shown}, "mark": dots, "encoding": {**level, "tooltip": tip}})
    return chart(layers, _HEIGHT)


def _map(picture: HeatMap) -> Spec:
    half_x, half_y = _half_step(picture.columns), _half_step(picture.rows)
    cells = [
        {
            "x": x,
            "y": y,
            "left": x - half_x,
            "right": x + half_x,
            "bottom": y - half_y,
            "top": y + half_y,
            "value": value,
            "told": number(value),
        }
        for y, row in zip(picture.rows, picture.values, strict=True)
        for x, value in zip(picture.columns, row, strict=True)
        if math.isfinite(value)
    ]
    most = max((abs(value) for row in picture.values for value in row if math.isfinite(value)), default=1.0)
    x = {
        "type": "quantitative",
        "scale": {"domain": [picture.columns[0] - half_x, picture.columns[-1] + half_x], "nice": False},
        "axis": {"title": picture.x.title, "grid": False},
    }
    y = {
        "type": "quantitative",
        "scale": {"domain": [picture.rows[0] - half_y, picture.rows[-1] + half_y], "nice": False},
        "axis": {"title": picture.y.title, "grid": False},
    }
    colour = {
        "field": "value",
        "type": "quantitative",
        # Square roots, so that a slow change can be told from none beside a fast one.
        "scale": {
            "type": "pow",
            "exponent": 0.5,
            "domain": [-most, 0, most],
            "range": _DIVERGING,
            "interpolate": "rgb",
        },
        "legend": {
            "orient": "right",
            "title": picture.value,
            "titleColor": "var(--ink)",
            "gradientLength": _HEIGHT - 80,
        },
    }
    tip = [
        {"field": "x", "title": picture.x.title, "format": ".3g"},
        {"field": "y", "title": picture.y.title, "format": ".3g"},
        {"field": "told", "title": picture.value},
    ]
    encoding = {
        "x": {**x, "field": "left"},
        "x2": {"field": "right"},
        "y": {**y, "field": "bottom"},
        "y2": {"field": "top"},
        "color": colour,
        "tooltip": tip,
    }
    layers: list[Spec] = [{"data": {"values": cells}, "mark": {"type": "rect"}, "encoding": encoding}]
    for curve in picture.curves:
        rows = [
            {"x": at, "y": value, "step": step}
            for step, (at, value) in enumerate(zip(curve.x, curve.y, strict=True))
        ]
        dash = [6, 4] if curve.origin is Origin.EXPECTED else [1, 0]
        mark = {"type": "line", "color": _EDGE, "strokeWidth": 2, "strokeDash": dash, "clip": True}
        place = {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, "order": {"field": "step"}}
        layers.append({"data": {"values": rows}, "mark": mark, "encoding": place})
    return chart(layers, _HEIGHT)


def _rows(line: int, curve: Curve) -> list[Spec]:
    lows, highs = curve.low or (None,) * len(curve.x), curve.high or (None,) * len(curve.x)
    return [
        {
            "line": line,
            "curve": curve.name,
            "origin": str(curve.origin),
            "x": x,
            "y": _finite(y),
            "low": None if _finite(high) is None else _finite(low),
            "high": _finite(high),
            "told": "none" if y is None else number(y),
        }
        for x, y, low, high in zip(curve.x, curve.y, lows, highs, strict=True)
    ]


def _x_scale(axis: Axis, values: Sequence[float]) -> Spec:
    whole = all(float(value).is_integer() for value in values)
    marks: Spec = {"title": axis.title, "grid": False}
    if axis.log:
        marks["values"] = sorted(set(values))
    if whole:
        marks |= {"format": "d", "tickMinStep": 1}
    elif axis.log and min(values) < 1e-3:
        marks["format"] = "~e"  # 3e-5 rather than 0.00003
    scale = {"type": "log" if axis.log else "linear", "nice": False, "zero": False}
    return {"field": "x", "type": "quantitative", "scale": scale, "axis": marks}


def _y_scale(axis: Axis, curves: Sequence[Curve]) -> Spec:
    if not axis.decades:
        return {
            "type": "quantitative",
            "scale": {"zero": False, "type": "log" if axis.log else "linear"},
            "axis": {"title": axis.title},
        }
    levels = [
        value
        for curve in curves
        for part in (curve.y, curve.low or (), curve.high or ())
        for value in part
        if _finite(value) is not None
    ]
    low, high = whole_decades([value for value in levels if value is not None])
    return level_scale(low, high, axis.title)


def _few(picture: Lines) -> bool:
    return max(len(curve.x) for curve in picture.curves) <= 12


def _half_step(places: Sequence[float]) -> float:
    return (places[1] - places[0]) / 2 if len(places) > 1 else 0.5


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
