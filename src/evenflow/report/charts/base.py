"""What all pictures share: the frame, the axes, and the layer that answers the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evenflow.flow.budget import block_of
from evenflow.report.text import place_name, power_of_ten, shorten

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_NAMED = 40
"""Places up to which each gets its name on the axis; of more, about a dozen do."""

_BLOCKS = range(4, 41)
"""Numbers of blocks whose names fit on an axis."""

_FLAT = 120
"""Characters that fit side by side below a picture; longer rows of names are turned."""

_TICK_STEPS = (1, 2, 5, 10, 20, 50, 100)

CONFIG: Spec = {
    "aria": False,  # one description and a table say it better than a thousand marks
    "font": _FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 10,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 13,
        "symbolStrokeWidth": 2,
        "columnPadding": 24,
        "orient": "top",
        "title": None,
    },
    "text": {"font": _FONT, "fontSize": 12},
}


def chart(layers: Sequence[Spec], height: int) -> Spec:
    """A picture as wide as its container."""
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        "layer": list(layers),
    }


def keys(names: Sequence[str], width: int = 26) -> list[str]:
    """Short unique names for an axis; the pointer and the table give the whole name."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        short = shorten(name, width)
        seen[short] = seen.get(short, 0) + 1
        result.append(short if seen[short] == 1 else f"{short} ·{seen[short]}")
    return result


def place_axis(places: Sequence[str]) -> tuple[list[str], Spec]:
    """The horizontal axis of layers, in forward order: their keys, and the encoding of ``key``.

    Of many places only those where blocks begin are named, by their block, or
    about a dozen where there are no blocks.
    """
    count = len(places)
    labels, named = [place_name(place) for place in places], list(range(count))
    if count > _NAMED:
        blocks = [block_of(place.partition(":")[0]) for place in places]
        starts = [i for i in range(count) if i == 0 or blocks[i] != blocks[i - 1]]
        if len(starts) in _BLOCKS:
            named = starts
            for start in starts:
                labels[start] = place_name(blocks[start])
        else:
            named = list(range(0, count, math.ceil(count / 12)))
    names = keys(labels)
    longest = max((len(names[i]) for i in named), default=0)
    return names, {
        "field": "key",
        "type": "ordinal",
        "scale": {"domain": names},
        "axis": {
            "title": "input → loss" if count <= _NAMED else f"input → loss, {count} places",
            "values": [names[i] for i in named],
            "labelAngle": 0 if len(named) * (longest + 1) <= _FLAT else -90,
            "labelLimit": 180,
            "labelOverlap": "greedy",
            "ticks": count <= _NAMED,
        },
    }


def decade_ticks(low: float, high: float, most: int = 9) -> list[int]:
    """Whole decades between two levels, about ``most`` of them."""
    first, last = math.ceil(low), math.floor(high)
    step = next((s for s in _TICK_STEPS if (last - first) / s <= most), 200)
    return [tick for tick in range(first, last + 1) if tick % step == 0]


def whole_decades(levels: Sequence[float], least: int = 3) -> tuple[float, float]:
    """The axis around some levels: whole decades, and at least ``least`` of them."""
    low, high = math.floor(min(levels, default=-least)), math.ceil(max(levels, default=0))
    missing = max(least - (high - low), 0)
    return low - math.ceil(missing / 2), high + missing // 2


def level_scale(low: float, high: float, title: str, extra: Mapping[float, str] | None = None) -> Spec:
    """An axis of log10 levels with labels such as 10⁻⁸.

    Args:
        low: Lower end.
        high: Upper end.
        title: Of the axis.
        extra: Labels of places that are no level.
    """
    middle, extra = (low + high) / 2, dict(extra or {})
    inside = (tick for tick in decade_ticks(low, high) if not any(_beyond(tick, e, middle) for e in extra))
    labels = {float(tick): power_of_ten(tick) for tick in inside} | extra
    return {
        "type": "quantitative",
        "scale": {"domain": [low, high], "nice": False, "zero": False},
        "axis": {"title": title, **label_axis(labels)},
    }


def _beyond(tick: float, place: float, middle: float) -> bool:
    """Whether a tick lies on or outside of a place that is no level."""
    return tick <= place if place < middle else tick >= place


def label_axis(labels: Mapping[float, str]) -> Spec:
    """Ticks at given values with given labels (of ours: they become part of an expression)."""
    values = sorted(labels)
    nearest = " : ".join(
        f"abs(datum.value - {value!r}) < 1e-6 ? {json.dumps(labels[value])}" for value in values
    )
    expression = f"{nearest} : ''" if values else "''"
    return {"values": values, "labelExpr": expression, "labelFlush": False, "labelOverlap": False}


def halo_text(rows: Sequence[Spec], mark: Spec, encoding: Spec, colour: str) -> list[Spec]:
    """Text that stays readable over lines and cells: the same text in the card's colour lies below it."""
    base = {"type": "text", **mark}
    below = {**base, "color": "var(--card)", "stroke": "var(--card)", "strokeWidth": 5, "opacity": 0.85}
    data = {"values": list(rows)}
    return [
        {"data": data, "mark": below, "encoding": encoding},
        {"data": data, "mark": {**base, "color": colour}, "encoding": encoding},
    ]


def hover(rows: Sequence[Spec], x: Spec, fields: Mapping[str, str], name: str) -> Spec:
    """A column over each place that lights up under the pointer and shows its numbers.

    Args:
        rows: One for each place.
        x: Encoding of the places.
        fields: Title in the tip → field.
        name: Of the selection; unique within the picture.
    """
    return {
        "data": {"values": list(rows)},
        "params": [{"name": name, "select": {"type": "point", "on": "pointerover", "clear": "pointerout"}}],
        "mark": {"type": "bar", "color": "var(--ink)", "width": {"band": 1}},
        "encoding": {
            "x": x,
            "y": {"value": 0},
            "y2": {"value": "height"},
            "opacity": {"condition": {"param": name, "empty": False, "value": 0.07}, "value": 0},
            "tooltip": [{"field": field, "title": title} for title, field in fields.items()],
        },
    }
