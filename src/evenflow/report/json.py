"""The report as JSON, for scripts.

The shape is versioned: within one ``schema_version`` fields are added, never
changed or removed. A number that JSON cannot hold is the string ``"NaN"``,
``"Infinity"`` or ``"-Infinity"``; what is not known is ``null``.

    schema_version  1
    evenflow        version that wrote it
    title           what was checked
    healthy         no finding of severity warning or error
    findings        [{code, symptom, severity, site, message, source, passed,
                      causes   [{name, confidence, confirmed, evidence,
                                 trial: null or {verdict, outcome, before, after}}],
                      evidence [{text, value, threshold}],
                      remedies [text]}], worst first
    skipped         [{code, reason}]: rules that could not judge
    suppressed      [{finding, reason}]: what the project accepts
    flow            the table that was judged, see below
    predicted       the same for the prediction, or null

and for each of the two tables

    source          "measured" or "predicted"
    metadata        facts on the step: loss, model, device …
    notes           [text]: what it does not cover
    layers          [{place, path, kind, activation, activation_gradient}], in forward order
    parameters      [{name, kind, status, parameter, parameter_gradient}], in order of use
    gain            {total, modules [{place, path, ops, log10_norm_in, log10_norm_out,
                      log10_gain, source}]}, in forward order
    time_steps      [{state, steps [{time, …statistics}]}]: gradients of recurrent states

where the statistics of a tensor are null or

    {count, mean, mean_square, rms, abs_max, zero_count, nonfinite_count,
     underflow {float16, bfloat16, float32}, half_width}

``underflow`` is the share of non-zero entries that would be zero in a format,
``half_width`` the half-width of a predicted interval in decades of RMS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evenflow import __version__
from evenflow.flow import Flow, Role, Stats
from evenflow.report.content import ReportContent
from evenflow.report.figures import end_to_end, profile

SCHEMA_VERSION = 1

_FORMATS = ("float16", "bfloat16", "float32")


def render_json(content: ReportContent) -> str:
    """The report as JSON text in ASCII; its shape is described in :mod:`evenflow.report.json`."""
    report = {
        "schema_version": SCHEMA_VERSION,
        "evenflow": __version__,
        "title": content.title,
        "healthy": not content.diagnosis.alarms,
        "findings": [asdict(finding) for finding in content.diagnosis.findings],
        "skipped": [asdict(skipped) for skipped in content.diagnosis.skipped],
        "suppressed": [asdict(suppressed) for suppressed in content.diagnosis.suppressed],
        "flow": _flow(content.flow),
        "predicted": None if content.predicted is None else _flow(content.predicted),
    }
    return json.dumps(_safe(report), indent=1, allow_nan=False)


def _flow(flow: Flow) -> dict[str, Any]:
    return {
        "source": flow.source,
        "metadata": flow.metadata,
        "notes": list(flow.notes),
        "layers": _joined(flow, Role.ACTIVATION, Role.ACTIVATION_GRADIENT),
        "parameters": _parameters(flow),
        "gain": {
            "total": end_to_end(flow),
            "modules": [asdict(link) for link in flow.budget("module", Role.ACTIVATION_GRADIENT)],
        },
        "time_steps": [
            {
                "state": state,
                "steps": [{"time": time, **_stats(stats)} for time, stats in sorted(steps.items())],
            }
            for state, steps in flow.time_profile().items()
        ],
    }


def _parameters(flow: Flow) -> list[dict[str, Any]]:
    status = flow.status()
    return [
        {"name": entry.pop("place"), "status": status.get(name), **entry}
        for entry in _joined(flow, Role.PARAMETER, Role.PARAMETER_GRADIENT)
        for name in (entry["place"],)
    ]


def _joined(flow: Flow, *roles: Role) -> list[dict[str, Any]]:
    """One entry for each place, with the statistics of every role."""
    entries: dict[str, dict[str, Any]] = {}
    for role in roles:
        stats = flow.stats(role)
        for reading in profile(flow, role):
            entry = entries.setdefault(
                reading.place,
                {
                    "place": reading.place,
                    "path": reading.path,
                    "kind": reading.kind,
                    **dict.fromkeys(map(str, roles)),
                },
            )
            if reading.place in stats:
                entry[str(role)] = _stats(stats[reading.place], reading.half_width)
    return list(entries.values())


def _stats(stats: Stats, half_width: float | None = None) -> dict[str, Any]:
    return {
        "count": stats.count,
        "mean": stats.mean,
        "mean_square": stats.mean_square,
        "rms": stats.rms,
        "abs_max": stats.abs_max,
        "zero_count": stats.zero_count,
        "nonfinite_count": stats.nonfinite_count,
        "underflow": {name: stats.underflow_fraction(name) for name in _FORMATS},
        "half_width": half_width,
    }


def _safe(value: Any) -> Any:
    """The value with every number that JSON cannot hold as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)
