"""Levels by layer: a line over all places, a prediction over it, findings marked on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenflow.diagnose.finding import Finding
from evenflow.report.charts.base import (
    Spec,
    chart,
    halo_text,
    hover,
    level_scale,
    place_axis,
    whole_decades,
)
from evenflow.report.figures import Reading, State
from evenflow.report.text import percent, place_name, printable, scientific

_FEW = 120
"""Places up to which each gets a dot."""

_CODES = 8
"""Findings whose codes are written out; every one has its ring."""

STATE_WORDS = {
    State.FINITE: "",
    State.ZERO: "exactly zero",
    State.ABSENT: "nothing arrives",
    State.NON_FINITE: "NaN or infinite",
}


def profile_chart(
    readings: Sequence[Reading],
    predicted: Sequence[Reading] = (),
    flags: Mapping[str, Finding] | None = None,
    *,
    source: str = "measured",
    quantity: str = "RMS",
) -> Spec:
    """Levels by layer, in forward order.

    Args:
        readings: The main curve.
        predicted: The curve to lay over it, with its interval.
        flags: Places that findings point at.
        source: Name of the main curve.
        quantity: Title of the level axis.
    """
    places = [reading.place for reading in readings]
    axis, x = place_axis(places)
    names = dict(zip(places, axis, strict=True))
    other = {r.place: r for r in predicted if r.place in names}
    points = [_point(r, names[r.place], other.get(r.place), (flags or {}).get(r.place)) for r in readings]
    main = {r.place for r in readings if r.main}
    overlay = [
        _interval(r, names[r.place]) for r in other.values() if r.log10_rms is not None and r.place in main
    ]

    levels = [p["level"] for p in points if p["level"] is not None]
    own = [
        _interval(r, names[r.place]) for r in readings if r.main and r.half_width and r.log10_rms is not None
    ]
    low, high = whole_decades([*levels, *(p[end] for p in (*overlay, *own) for end in ("from", "to"))])
    gutter = (high - low) * 0.09
    extra: dict[float, str] = {}
    if any(r.state in (State.ZERO, State.ABSENT) for r in readings):
        low -= gutter
        extra[low] = "zero" if any(r.state is State.ZERO for r in readings) else "none"
    if any(r.state is State.NON_FINITE for r in readings):
        high += gutter
        extra[high] = "NaN, ∞"
    for point in points:
        point["edge"] = high if point["state"] == State.NON_FINITE else low

    y = level_scale(low, high, quantity, extra)
    layers: list[Spec] = []
    layers += _band(overlay, x, y, "var(--predicted)") + _band(own, x, y, "var(--measured)")
    layers.append(_lines([{**p, "series": source} for p in points if p["main"]], overlay, x, y, source))
    layers += _dots([p for p in points if p["level"] is not None], x, y)
    layers += _odd_ones([p for p in points if p["state"] != State.FINITE], x, y)
    layers += _flags([p for p in points if p["code"]], x, y)
    fields = {"place": "place", "kind": "kind", source: "value"}
    fields |= {"predicted": "predicted"} if overlay else {}
    fields |= {"state": "note"} if extra else {}
    fields |= {"finding": "code"} if flags else {}
    layers.append(hover(points, x, fields, "place_hover"))
    return chart(layers, 300)


def _point(reading: Reading, key: str, predicted: Reading | None, finding: Finding | None) -> Spec:
    note = STATE_WORDS[reading.state]
    if reading.nonfinite:
        note = f"{percent(reading.nonfinite)} {note}"
    return {
        "key": key,
        "place": place_name(reading.place),
        "kind": printable(reading.kind),
        "state": str(reading.state),
        "main": reading.main,
        "level": reading.log10_rms,
        "value": "–" if reading.log10_rms is None else scientific(reading.log10_rms),
        "predicted": "–"
        if predicted is None or predicted.log10_rms is None
        else scientific(predicted.log10_rms),
        "note": note or "–",
        "code": "" if finding is None else printable(finding.code),
        "severity": "" if finding is None else str(finding.severity),
    }


def _interval(reading: Reading, key: str) -> Spec:
    """A predicted level and where one draw of the weights should lie."""
    assert reading.log10_rms is not None
    half = reading.half_width or 0.0
    level = reading.log10_rms
    return {"key": key, "series": "predicted", "level": level, "from": level - half, "to": level + half}


def _band(rows: Sequence[Spec], x: Spec, y: Spec, colour: str) -> list[Spec]:
    """The intervals around predicted levels."""
    if not any(row["from"] < row["to"] for row in rows):
        return []
    mark = {"type": "area", "color": colour, "opacity": 0.15}
    encoding = {"x": x, "y": {**y, "field": "from"}, "y2": {"field": "to"}}
    return [{"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}]


def _lines(main: Sequence[Spec], overlay: Sequence[Spec], x: Spec, y: Spec, source: str) -> Spec:
    """The line through the main places, and the predicted one."""
    return {
        "data": {"values": [*main, *overlay]},
        "mark": {"type": "line", "strokeWidth": 2.5, "invalid": "break-paths-show-domains"},
        "encoding": {
            "x": x,
            "y": {**y, "field": "level"},
            **_series([source, "predicted"] if overlay else [source]),
        },
    }


def _dots(points: Sequence[Spec], x: Spec, y: Spec) -> list[Spec]:
    """A dot at each place; of many places, only at those beside the line."""
    few = len(points) <= _FEW
    kinds: list[tuple[list[Spec], Spec]] = [
        ([p for p in points if p["main"]] if few else [], {"size": 40, "opacity": 1}),
        ([p for p in points if not p["main"]], {"size": 26 if few else 12, "opacity": 0.55}),
    ]
    return [
        {
            "data": {"values": shown},
            "mark": {"type": "point", "filled": True, "color": "var(--measured)", **style},
            "encoding": {"x": x, "y": {**y, "field": "level"}},
        }
        for shown, style in kinds
        if shown
    ]


def _series(names: Sequence[str]) -> dict[str, Spec]:
    """Colour and dash of each curve, in one legend."""
    field = {"field": "series", "type": "nominal"}
    legend = {"symbolType": "stroke", "symbolSize": 500} if len(names) > 1 else None
    colours = [
        "var(--predicted)" if name == "predicted" and len(names) > 1 else "var(--measured)" for name in names
    ]
    dashes = [[1, 0], [6, 4]][: len(names)]
    return {
        "color": {**field, "scale": {"domain": list(names), "range": colours}, "legend": legend},
        "strokeDash": {**field, "scale": {"domain": list(names), "range": dashes}, "legend": legend},
    }


def _odd_ones(points: Sequence[Spec], x: Spec, y: Spec) -> list[Spec]:
    """Places without a plain level, at the edge: a ring for zero, × for nothing, + for NaN."""
    if not points:
        return []
    states = [State.ZERO, State.ABSENT, State.NON_FINITE]
    shapes = ["circle", "M-1,-1L1,1M1,-1L-1,1", "cross"]
    return [
        {
            "data": {"values": [{**p, "what": STATE_WORDS[State(p["state"])]} for p in points]},
            "mark": {
                "type": "point",
                "size": 70 if len(points) <= _FEW else 14,
                "strokeWidth": 2,
                "color": "var(--error)",
            },
            "encoding": {
                "x": x,
                "y": {**y, "field": "edge"},
                "shape": {
                    "field": "what",
                    "type": "nominal",
                    "scale": {"domain": [STATE_WORDS[s] for s in states], "range": shapes},
                    "legend": {
                        "values": [STATE_WORDS[s] for s in states if any(p["state"] == s for p in points)]
                    },
                },
            },
        }
    ]


def _flags(points: Sequence[Spec], x: Spec, y: Spec) -> list[Spec]:
    """A ring and the rule's code where a finding points; neighbouring codes stand above and below in turn."""
    layers: list[Spec] = []
    values = [{**p, "height": p["level"] if p["level"] is not None else p["edge"]} for p in points]
    place = {"x": x, "y": {**y, "field": "height"}}
    for severity in sorted({p["severity"] for p in values}):
        mark = {"type": "point", "size": 220, "strokeWidth": 2, "color": f"var(--{severity})"}
        rings = [p for p in values if p["severity"] == severity]
        layers.append({"data": {"values": rings}, "mark": mark, "encoding": place})
    for number, point in enumerate(values[:_CODES]):
        mark = {"align": "left", "dx": 9, "dy": 19 if number % 2 else -15, "fontWeight": "bold"}
        encoding = {**place, "text": {"field": "code"}}
        layers += halo_text([point], mark, encoding, f"var(--{point['severity']})")
    return layers
