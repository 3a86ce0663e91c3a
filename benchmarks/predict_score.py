"""Predicted against measured: the error of every tensor in decades, and whether it is small enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from evenflow.flow import Flow, Role
from evenflow.measure import measure
from evenflow.predict import predict

ROLES = (Role.PARAMETER_GRADIENT, Role.ACTIVATION_GRADIENT)
MEDIAN, TAIL = 0.03, 0.10
"""The bar: median and 95th percentile of |Δlog10 RMS|."""
STEEPNESS = 0.02
"""The bar for slopes over depth, relative."""
STATED = 0.95
"""Share of cases that a stated interval claims to hold."""


@dataclass
class Case:
    """A model family with what it is called with.

    Attributes:
        name: What it is called.
        build: Makes a model.
        inputs: Makes what it is called with.
        loss: From its output to a scalar.
        deep: Whether it is a stack of equal layers, whose slope over depth is scored too.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Any]
    loss: Callable[[Any], Any] | None = None
    deep: bool = False


@dataclass
class Errors:
    """Of one role in one family.

    Attributes:
        errors: Tensor → log10 RMS predicted − mean over seeds of log10 RMS measured.
        scatter: Median over tensors of the standard deviation over seeds, in decades.
        stated: Median over tensors of the half-width of the stated interval, in decades.
        covered: Share of (tensor, seed) that lie in the stated interval.
    """

    errors: dict[str, float]
    scatter: float
    stated: float
    covered: float

    @property
    def median(self) -> float:
        """Of the sizes of the errors."""
        return float(np.median(np.abs(list(self.errors.values()))))

    @property
    def tail(self) -> float:
        """95th percentile of the sizes of the errors."""
        return float(np.percentile(np.abs(list(self.errors.values())), 95))

    @property
    def verdict(self) -> str:
        """Where it stands.

        ``in``: within the bar. ``cover``: outside it, but single seeds differ by more
        than the bar and lie in the stated interval as often as it claims. Else ``OUT``.
        """
        if self.median <= MEDIAN and self.tail <= TAIL:
            return "in"
        return "cover" if self.scatter > MEDIAN and self.covered >= STATED else "OUT"


@dataclass
class Slope:
    """Of log10 RMS of the gradients at linear outputs, in decades from a net's end to its beginning.

    Attributes:
        predicted: Least squares through all but the head, in the order of execution.
        measured: The same, mean over seeds.
        uncertainty: Half-width of its 95 % interval (Student's t) from the seeds.
    """

    predicted: float
    measured: float
    uncertainty: float

    @property
    def error(self) -> float:
        """Relative to the measured one."""
        return abs(self.predicted - self.measured) / abs(self.measured)

    @property
    def verdict(self) -> str:
        """``in``: within the bar. ``cover``: outside it, but no further off than the truth is known."""
        if self.error <= STEEPNESS:
            return "in"
        return "cover" if abs(self.predicted - self.measured) <= self.uncertainty else "OUT"


@dataclass
class Score:
    """All of one family.

    Attributes:
        parameters: Of their gradients.
        activations: Of the gradients at activations.
        slope: Of a deep net.
        missing: Tensors that were measured and not predicted.
        zeros: Tensors predicted as exact zeros, and left out of the errors.
        seconds: That the prediction took.
        notes: What it said.
    """

    name: str
    seeds: int
    parameters: Errors
    activations: Errors
    slope: Slope | None = None
    missing: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Of parameters, activations and, for a deep net, its slope."""
        parts = (self.parameters, self.activations, self.slope)
        return tuple(part.verdict for part in parts if part is not None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Score:
        """Back again."""
        slope = record["slope"]
        kept = {
            "parameters": Errors(**record["parameters"]),
            "activations": Errors(**record["activations"]),
            "slope": None if slope is None else Slope(**slope),
        }
        return cls(**{**record, **kept})


def score(case: Case, seeds: int = 4) -> Score:
    """Predict once, measure with every seed."""
    inputs = case.inputs(torch.Generator().manual_seed(1))
    start = time.perf_counter()
    predicted = predict(case.build, inputs, case.loss)
    seconds = time.perf_counter() - start
    flows: list[Flow] = []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = case.build()
        torch.manual_seed(100 + seed)
        flows.append(measure(model, inputs, case.loss))
    missing: list[str] = []
    zeros: list[str] = []
    parameters, activations = (_errors(role, predicted, flows, missing, zeros) for role in ROLES)
    slope = _slope(predicted, flows) if case.deep else None
    return Score(
        case.name, seeds, parameters, activations, slope, missing, zeros, seconds, tuple(predicted.notes)
    )


def _errors(role: Role, predicted: Flow, flows: list[Flow], missing: list[str], zeros: list[str]) -> Errors:
    ours_by_site = {row.site: row for row in predicted.select(role)}
    logs: dict[Any, list[float]] = {}
    for flow in flows:
        for row in flow.select(role):
            if row.stats is not None:
                logs.setdefault(row.site, []).append(row.stats.log10_rms)
    biggest = max((max(v) for v in logs.values()), default=0.0)
    errors: dict[str, float] = {}
    scatter, stated, covered = [], [], []
    for site, values in logs.items():
        ours = ours_by_site.get(site)
        name = f"{role}:{site.label}"
        if ours is None or ours.stats is None:
            missing.append(name)
            continue
        if ours.stats.mean_square == 0.0:
            zeros.append(name)
            if np.mean(values) > biggest - 6:
                missing.append(f"{name} predicted 0, is {np.mean(values):.2f}")
            continue
        if not np.isfinite(values).all():
            continue
        errors[site.label] = ours.stats.log10_rms - float(np.mean(values))
        width = ours.half_width or 0.0
        stated.append(width)
        covered += [abs(ours.stats.log10_rms - value) <= width for value in values]
        scatter.append(np.std(values, ddof=1))
    return Errors(errors, float(np.median(scatter)), float(np.median(stated)), float(np.mean(covered)))


def _slope(predicted: Flow, flows: list[Flow]) -> Slope:
    levels = np.array([_levels(flow) for flow in (predicted, *flows)])
    levels = levels[:, np.isfinite(levels).all(0)]  # without what underflows
    ours, *measured = -np.polyfit(np.linspace(0, 1, levels.shape[1]), levels.T, 1)[0]
    student = stats.t.ppf((1 + STATED) / 2, len(measured) - 1)
    uncertainty = student * np.std(measured, ddof=1) / np.sqrt(len(measured))
    return Slope(float(ours), float(np.mean(measured)), float(uncertainty))


def _levels(flow: Flow) -> list[float]:
    """Log10 RMS of the gradients at the outputs of linear layers but the last, which is the head."""
    rows = [row for row in flow.select(Role.ACTIVATION_GRADIENT) if row.site.op == "addmm"]
    rows.sort(key=lambda row: row.order)
    return [math.nan if row.stats is None else row.stats.log10_rms for row in rows[:-1]]
