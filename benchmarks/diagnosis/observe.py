"""What a program did, in a few lines: its loss, its gradients and updates by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from evenflow import Report
from evenflow.flow import Flow, Role, Run


def story(report: Report) -> Iterator[str]:
    """Lines on what was found in a checked program, its first batch and its training."""
    for finding in report.findings:
        causes = ", ".join(f"{cause.name} {cause.confidence:.2f}" for cause in finding.causes)
        yield f"{finding.code} {finding.severity} at {finding.site}: {finding.message} ({causes})"
    for role, flow in report.flows.items():
        gradients = _levels(flow, Role.PARAMETER_GRADIENT)
        yield f"gradient RMS at init{f' ({role})' if role else ''}, log10, first to last: {gradients}"
    run = report.run
    if run is None:
        return
    for name, series in run.scalars.items():
        if name.startswith(("loss", "gradient_norm_before")):
            yield f"{name}: {_curve(series.values)}"
    if run.steps:
        last = run.flow()
        yield (
            f"{len(run.steps)} steps sampled; at step {run.steps[-1]}: gradient RMS log10 "
            f"{_levels(last, Role.PARAMETER_GRADIENT)}"
        )
        yield f"update/weight ratio log10, first to last: {_ratios(run)}"
    for event in run.events:
        if event.kind not in ("cost",):
            yield f"event at step {event.step}: {event.kind}: {event.text}"


def _levels(flow: Flow, role: Role, most: int = 10) -> str:
    """log10 RMS of matrices' rows, thinned to ``most``."""
    rows = [row for row in flow.select(role) if row.stats is not None and not row.site.path.endswith("bias")]
    levels = [row.stats.log10_rms for row in rows if row.stats is not None]
    return _thin([_short(level) for level in levels], most)


def _ratios(run: Run, most: int = 10) -> str:
    ratios = [value for path, value in run.update_to_weight_ratio().items() if not path.endswith("bias")]
    return _thin([_short(math.log10(value) if value > 0 else -math.inf) for value in ratios], most)


def _curve(values: np.ndarray[tuple[int], np.dtype[np.float64]], points: int = 8) -> str:
    picks = sorted({round(i * (len(values) - 1) / (points - 1)) for i in range(points)})
    return " → ".join(f"{values[i]:.3g}" for i in picks) + f" ({len(values)} steps)"


def _thin(words: list[str], most: int) -> str:
    picks = sorted({round(i * (len(words) - 1) / (most - 1)) for i in range(most)}) if words else []
    return " ".join(words[i] for i in picks) + (f" (of {len(words)})" if len(words) > most else "")


def _short(level: float) -> str:
    return f"{level:.1f}" if math.isfinite(level) else "0" if level < 0 else "nan"
