"""Predicted against measured: the error of every tensor in decades."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from evenflow.flow import Flow, Role
from evenflow.measure import measure
from evenflow.predict import predict

ROLES = (Role.PARAMETER_GRADIENT, Role.ACTIVATION_GRADIENT)


@dataclass
class Case:
    """A model family with what it is called with."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Any]
    loss: Callable[[Any], Any] | None = None


@dataclass
class Score:
    """Errors of one case.

    Attributes:
        errors: Role → site → log10 RMS predicted − mean over seeds of log10 RMS measured.
        spread: Role → site → standard deviation over seeds.
        missing: Sites that were measured and not predicted.
        zeros: Sites predicted as exact zeros.
    """

    errors: dict[Role, dict[str, float]] = field(default_factory=dict)
    spread: dict[Role, dict[str, float]] = field(default_factory=dict)
    covered: dict[Role, list[bool]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def line(self, role: Role) -> tuple[float, float, float, int]:
        errors = np.abs(list(self.errors[role].values()))
        if not len(errors):
            return float("nan"), float("nan"), float("nan"), 0
        return (
            float(np.median(errors)),
            float(np.percentile(errors, 95)),
            float(np.median(list(self.spread[role].values()))),
            len(errors),
        )


def score(case: Case, seeds: int = 4, precision: torch.dtype = torch.float32) -> Score:
    generator = torch.Generator().manual_seed(1)
    inputs = case.inputs(generator)
    start = time.perf_counter()
    predicted = predict(case.build, inputs, case.loss)
    result = Score(seconds=time.perf_counter() - start, notes=predicted.notes)
    flows: list[Flow] = []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = case.build()
        torch.manual_seed(100 + seed)
        flows.append(measure(model, inputs, case.loss))
    for role in ROLES:
        ours_by_site = {row.site: row for row in predicted.select(role)}
        logs: dict[Any, list[float]] = {}
        for flow in flows:
            for row in flow.select(role):
                if row.stats is not None:
                    logs.setdefault(row.site, []).append(row.stats.log10_rms)
        biggest = max((max(v) for v in logs.values()), default=0.0)
        result.errors[role], result.spread[role], result.covered[role] = {}, {}, []
        for site, values in logs.items():
            ours = ours_by_site.get(site)
            if ours is None or ours.stats is None:
                result.missing.append(f"{role}:{site.label}")
                continue
            if ours.stats.mean_square == 0.0:
                result.zeros.append(f"{role}:{site.label}")
                if np.mean(values) > biggest - 6:
                    result.missing.append(f"{role}:{site.label} predicted 0, is {np.mean(values):.2f}")
                continue
            if not np.isfinite(values).all():
                continue
            result.errors[role][site.label] = ours.stats.log10_rms - float(np.mean(values))
            width = ours.half_width or 0.0
            result.covered[role] += [abs(ours.stats.log10_rms - value) <= width for value in values]
            result.spread[role][site.label] = float(np.std(values, ddof=1))
    return result


def show(case: Case, seeds: int = 4, worst: int = 0) -> Score:
    found = score(case, seeds)
    text = f"{case.name:34s}"
    for role in ROLES:
        median, p95, spread, count = found.line(role)
        kind = "param" if role is Role.PARAMETER_GRADIENT else "activ"
        inside = np.mean(found.covered[role] or [False])
        text += f" | {kind} {median:.3f} / {p95:.3f} (seeds {spread:.3f}, n {count}, in {inside:.0%})"
    print(
        text + f" | {found.seconds:.1f} s | missing {len(found.missing)} zeros {len(found.zeros)}", flush=True
    )
    for note in found.notes:
        print("      ", note)
    if worst:
        for role in ROLES:
            order = sorted(found.errors[role].items(), key=lambda kv: -abs(kv[1]))[:worst]
            print("      ", role, [(k, round(v, 3)) for k, v in order])
        print("      ", found.missing[:worst])
    return found
