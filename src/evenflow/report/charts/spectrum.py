"""How entries spread over powers of two, against what each float format holds.

Below the histogram each format is a bar from its smallest to its largest
number; the lighter part on its left are the subnormal numbers, which carry
fewer digits. What lies left of a bar becomes zero in that format, what lies
right of it becomes infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.flow import FORMATS, Stats
from evenflow.report.charts.base import Spec, chart, halo_text, hover, label_axis, place_axis
from evenflow.report.figures import Spectrum
from evenflow.report.text import percent, place_name, power_of_two, words

SHOWN_FORMATS = ("float16", "bfloat16", "float32")
_HUES = {
    "activation": "var(--series-3)",
    "activation_gradient": "var(--series-1)",
    "parameter_gradient": "var(--series-2)",
    "parameter": "var(--series-4)",
}
_LIMITS = (
    {"from": FORMATS["float16"].min_subnormal, "text": "float16: zero below"},
    {"from": FORMATS["float16"].min_normal, "text": "float16: fewer digits below"},
    {"from": FORMATS["float16"].max_exponent + 1, "text": "float16: infinite above"},
)
_ROOM = 3
"""Powers of two left free on both sides of the data."""

_DARKEST = 0.55
"""Root of the share at which a cell is darkest: the fullest bin of a Gaussian holds
P(½ ≤ |z| < 1) = 0.30 of it. Of the root, not of the share, so that tails show."""


def spectrum_chart(spectra: Sequence[Spectrum]) -> Spec:
    """Share of the non-zero entries by exponent, one area for each role."""
    fp16 = FORMATS["float16"]
    low = min(fp16.min_subnormal, *(s.exponents.low for s in spectra)) - _ROOM
    high = max(fp16.max_exponent, *(s.exponents.high for s in spectra)) + 1 + _ROOM
    rows = [row for spectrum in spectra for row in _histogram(spectrum)]
    top = max(row["share"] for row in rows) * 1.08
    bar = top * 0.075
    formats = [
        row
        for i, name in enumerate(SHOWN_FORMATS)
        for row in _format(name, -(i + 1.35) * bar, bar * 0.8, low, high)
    ]
    x = {
        "field": "from",
        "type": "quantitative",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
        "axis": {
            "title": "size of an entry, as a power of two",
            "grid": False,
            **label_axis(_power_ticks(low, high)),
        },
    }
    y = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [-(len(SHOWN_FORMATS) + 0.6) * bar, top], "nice": False},
        "axis": {
            "title": "share of the non-zero entries",
            "labelExpr": "datum.value < 0 ? '' : format(datum.value, '.0%')",
            "grid": False,
            "tickCount": 5,
        },
    }
    roles = [words(str(s.role)) for s in spectra]
    colour = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": roles, "range": [_HUES.get(str(s.role), "var(--series-5)") for s in spectra]},
        "legend": {"orient": "top", "title": None},
    }
    tip = [
        {"field": "role", "title": "of"},
        {"field": "range", "title": "size"},
        {"field": "percent", "title": "entries"},
    ]
    label = {
        "type": "text",
        "align": "left",
        "dx": 5,
        "clip": True,
        "color": "var(--on-format)",
        "fontSize": 11,
    }
    return chart(
        [
            {
                "data": {"values": formats},
                "mark": {"type": "rect", "color": "var(--format)", "cornerRadius": 2, "clip": True},
                "encoding": {
                    "x": x,
                    "x2": {"field": "to"},
                    "y": {**y, "field": "bottom"},
                    "y2": {"field": "top"},
                    "opacity": {"field": "opacity", "type": "quantitative", "scale": None},
                    "tooltip": [{"field": "format", "title": "format"}, {"field": "what", "title": "holds"}],
                },
            },
            {
                "data": {"values": [row for row in formats if row["label"]]},
                "mark": label,
                "encoding": {
                    "x": {**x, "field": "labelled"},
                    "y": {**y, "field": "middle"},
                    "text": {"field": "label"},
                },
            },
            {
                "data": {"values": list(_LIMITS)},
                "mark": {"type": "rule", "color": "var(--muted)", "strokeDash": [3, 3]},
                "encoding": {"x": x},
            },
            {
                "data": {"values": rows},
                "mark": {
                    "type": "area",
                    "interpolate": "step-after",
                    "opacity": 0.3,
                    "line": {"strokeWidth": 2},
                },
                "encoding": {"x": x, "y": {**y, "stack": None}, "color": colour},
            },
            {
                "data": {"values": [row for row in rows if row["share"] > 0]},
                "mark": {"type": "rect", "opacity": 0},
                "encoding": {
                    "x": x,
                    "x2": {"field": "to"},
                    "y": y,
                    "y2": {"value": "height"},
                    "tooltip": tip,
                },
            },
            {
                "data": {"values": list(_LIMITS)},
                "mark": {
                    "type": "text",
                    "angle": 270,
                    "align": "right",
                    "dy": -7,
                    "fontSize": 11,
                    "color": "var(--muted)",
                },
                "encoding": {"x": x, "y": {"value": 2}, "text": {"field": "text"}},
            },
        ],
        340,
    )


def exponent_map(parts: Sequence[tuple[str, str, Stats]]) -> Spec:
    """Exponents by layer: the darker a cell, the more of the layer's non-zero entries it holds.

    Args:
        parts: (first place, last place, statistics) of each column, in forward order.
    """
    fp16 = FORMATS["float16"]
    titles = [place_name(a) if a == b else f"{place_name(a)} … {place_name(b)}" for a, b, _ in parts]
    names, x = place_axis([first for first, *_ in parts])
    known = [stats.exponents for *_, stats in parts if stats.exponents is not None and stats.exponents.counts]
    low = min([fp16.min_subnormal, *(e.low for e in known)]) - _ROOM
    high = max([fp16.max_exponent, *(e.high for e in known)]) + 1 + _ROOM
    cells, columns = [], []
    for key, title, (*_, stats) in zip(names, titles, parts, strict=True):
        exponents = stats.exponents
        lost = {name: stats.underflow_fraction(name) or 0.0 for name in SHOWN_FORMATS}
        zero = stats.zero_fraction or 0.0
        columns.append(
            {"key": key, "place": title, "zero": percent(zero), **{n: percent(v) for n, v in lost.items()}}
        )
        for offset, count in enumerate(exponents.counts if exponents else ()):
            if count and exponents:
                share = count / exponents.total
                bin_low = exponents.low + offset
                cells.append({"key": key, "from": bin_low, "to": bin_low + 1, "root": round(share**0.5, 3)})
    y = {
        "field": "from",
        "type": "quantitative",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
        "axis": {"title": "size of an entry", "grid": False, **label_axis(_power_ticks(low, high))},
    }
    rule = {"type": "rule", "color": "var(--warning)", "strokeDash": [4, 3], "opacity": 0.8}
    note = {"align": "left", "dx": 4, "dy": -7, "fontSize": 11}
    return chart(
        [
            {
                "data": {"values": cells},
                "mark": {"type": "rect", "color": "var(--measured)", "width": {"band": 1}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "y2": {"field": "to"},
                    "opacity": {
                        "field": "root",
                        "type": "quantitative",
                        "scale": {"domain": [0, _DARKEST], "clamp": True},
                        "legend": None,
                    },
                },
            },
            {"data": {"values": list(_LIMITS)}, "mark": rule, "encoding": {"y": y}},
            *halo_text(
                _LIMITS, note, {"x": {"value": 0}, "y": y, "text": {"field": "text"}}, "var(--warning)"
            ),
            hover(
                columns,
                x,
                {"place": "place", "exactly zero": "zero", **{f"zero in {n}": n for n in SHOWN_FORMATS}},
                "column_hover",
            ),
        ],
        340,
    )


def _histogram(spectrum: Spectrum) -> list[Spec]:
    """One row for each bin, with an empty one at both ends so that the outline closes."""
    exponents = spectrum.exponents
    total = exponents.total
    counts = [0, *exponents.counts, 0]
    return [
        {
            "role": words(str(spectrum.role)),
            "from": exponent,
            "to": exponent + 1,
            "share": count / total,
            "percent": percent(count / total),
            "range": f"{power_of_two(exponent)} to {power_of_two(exponent + 1)}",
        }
        for exponent, count in enumerate(counts, start=exponents.low - 1)
    ]


def _format(name: str, bottom: float, height: float, low: float, high: float) -> list[Spec]:
    """The bar of one format: subnormal numbers light, normal ones full."""
    f = FORMATS[name]
    parts = [
        (f.min_subnormal, f.min_normal, 0.45, f"with fewer digits, from {power_of_two(f.min_subnormal)}"),
        (
            f.min_normal,
            f.max_exponent + 1,
            1.0,
            f"in full, from {power_of_two(f.min_normal)} to {power_of_two(f.max_exponent + 1)}",
        ),
    ]
    rows = []
    for start, stop, opacity, what in parts:
        left, right = max(start, low), min(stop, high)
        if left < right:
            rows.append(
                {
                    "format": name,
                    "what": what,
                    "from": left,
                    "to": right,
                    "bottom": bottom,
                    "top": bottom + height,
                    "middle": bottom + height / 2,
                    "opacity": opacity,
                    "label": name if opacity == 1.0 else "",
                    "labelled": left,
                }
            )
    return rows


def _power_ticks(low: float, high: float) -> dict[float, str]:
    step = next(s for s in (4, 8, 16, 32, 64, 128, 256) if (high - low) / s <= 14)
    first = -(-int(low) // step) * step
    return {float(tick): power_of_two(tick) for tick in range(first, int(high) + 1, step)}
