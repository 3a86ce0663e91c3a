"""The phase diagram of a plain tanh net: ordered, chaotic, and the edge between.

With weights of variance σ_w²/n and biases of variance σ_b² every layer
multiplies E‖gradient‖² by χ₁, which goes below 1 (ordered, gradients vanish) or
above (chaotic, gradients explode). The line χ₁ = 1 is the edge of chaos.

Measured is the gain ‖δ_l‖²/‖δ_l₊₁‖² layer by layer, in nets that have settled
at q*; its mean is an unbiased estimate of χ₁ at any width.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from evenflow.flow import Role
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian, log10_norms
from evenflow.lab.networks import DeepNet, Init
from evenflow.lab.picture import Axis, Curve, HeatMap, Lines, Origin
from evenflow.lab.verdict import Comparison, mean, near
from evenflow.theory import chi, critical_point, depth_scale, fixed_point, q_star

SIGMA_B2 = 0.05
REFERENCE = {1.3: 0.88016, 1.5: 0.93864, 2.0: 1.04767, 4.0: 1.34240}
"""χ₁ of tanh at σ_b² = .05 by σ_w² (THEORY.md, section 4)."""


@final
@dataclass(frozen=True)
class PhaseDiagram(Experiment):
    """See the module.

    Attributes:
        width: Units per layer.
        depth: Linear layers; the first ``settle`` are left out.
        settle: Layers that q takes to settle.
        batch: Samples.
        seeds: Random nets for each tabulated point.
        map_width: Units per layer of the nets of the map.
        grid: Points of the map along each side.
        scales: σ_w² at which the depth scale is compared as well. 3 % of 1/|ln χ₁| takes
            χ₁ to within 3 % · |ln χ₁|, and near the edge that takes very many nets.
    """

    place = 6
    title = "The phase diagram and the edge of chaos"
    question = "For which weight and bias variances do gradients of a plain tanh net vanish, or explode?"
    expectation = (
        "They vanish where χ₁ = σ_w² E φ'(√q* z)² is below 1 and explode where it is above. The edge runs "
        "from σ_w² = 1 without biases to larger weights with biases: biases saturate tanh, which the weights "
        "must make up for."
    )
    quick: ClassVar = {"seeds": 4, "depth": 40, "settle": 10, "grid": 7, "scales": (4.0,)}

    width: int = 512
    depth: int = 50
    settle: int = 15
    batch: int = 32
    seeds: int = 40
    map_width: int = 128
    grid: int = 21
    scales: tuple[float, ...] = (1.3, 4.0)

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for sigma_w2 in track(list(REFERENCE)):
            comparisons += self._point(sigma_w2, curves)
        cells = list(itertools.product(_axis(0.0, 0.5, self.grid), _axis(0.5, 4.0, self.grid)))
        values = {(b, w): self._map_value(w, b) for b, w in track(cells)}
        agreeing = [
            (values[b, w] > 0) == (_log10_chi(w, b) > 0) for b, w in cells if abs(_log10_chi(w, b)) > 0.02
        ]
        comparisons.append(
            Comparison(
                "share of the map on the right side of the edge",
                near(1.0, 1e-9, "χ₁ ≷ 1, where χ₁ is off 1 by more than 5 %", "Poole et al. 2016, fig. 1"),
                (mean([float(right) for right in agreeing]),),
                exact=True,
            )
        )
        return Outcome(tuple(comparisons), (self._map(values), _rates(curves)))

    def _point(self, sigma_w2: float, curves: list[Curve]) -> list[Comparison]:
        """One tabulated point: χ₁, the depth scale and q*."""
        theory = fixed_point("tanh", sigma_w2, SIGMA_B2)
        gains, qs = zip(*(self._gains(sigma_w2, SIGMA_B2, seed) for seed in range(self.seeds)), strict=True)
        rates = tuple(statistics.fmean(one) for one in gains)
        where = f"tanh, σ_w² = {sigma_w2:g}, σ_b² = {SIGMA_B2:g}"
        source = "Poole et al. 2016, eq. 3 and 7; THEORY.md, section 4"
        curves.append(
            Curve(where, tuple(range(1, len(gains[0]) + 1)), tuple(map(mean, zip(*gains, strict=True))))
        )
        curves.append(Curve(where, (1, len(gains[0])), (theory.chi_1, theory.chi_1), Origin.EXPECTED))
        known = REFERENCE[sigma_w2]
        found = [
            Comparison(f"{where}: χ₁", near(known, 0.03 * known, "σ_w² E φ'(√q* z)²", source), rates),
            Comparison(f"{where}: q*", near(theory.q, 0.03 * theory.q, "σ_w² E φ² + σ_b² = q*", source), qs),
        ]
        if sigma_w2 in self.scales:
            scale = depth_scale(theory.chi_1)
            # 1/|ln χ| of the mean rate has no per-seed samples without bias, so the interval is that
            # of χ₁ carried through: |dξ/dχ| = ξ²/χ.
            samples = tuple(scale + (rate - theory.chi_1) * _slope(theory.chi_1) for rate in rates)
            found.append(
                Comparison(
                    f"{where}: depth scale, layers",
                    near(scale, 0.03 * scale, "ξ = 1/|ln χ₁|", "Schoenholz et al. 2017, eq. 17"),
                    samples,
                )
            )
        return found

    def _gains(self, sigma_w2: float, sigma_b2: float, seed: int) -> tuple[list[float], float]:
        """‖δ_l‖²/‖δ_l₊₁‖² of each settled layer, and q there."""
        flow = draw(
            lambda: DeepNet(
                inputs=self.width,
                width=self.width,
                depth=self.depth,
                act="tanh",
                init=Init("normal", gain=sigma_w2**0.5, bias_std=sigma_b2**0.5),
            ),
            gaussian(self.batch, self.width, seed=seed),
            seed,
        )
        levels = log10_norms(flow, ".linear")[self.settle :]
        gains = [100 ** (before - after) for before, after in itertools.pairwise(levels)]
        squares = list(flow.stats(Role.ACTIVATION).items())
        q = [stats.mean_square for place, stats in squares if place.endswith(".linear")][self.settle :]
        return gains, statistics.fmean(q)

    def _map_value(self, sigma_w2: float, sigma_b2: float) -> float:
        """log10 of the gain of ‖gradient‖ per layer, in one net."""
        levels = log10_norms(
            draw(
                lambda: DeepNet(
                    inputs=self.map_width,
                    width=self.map_width,
                    depth=self.depth,
                    act="tanh",
                    init=Init("normal", gain=sigma_w2**0.5, bias_std=sigma_b2**0.5),
                ),
                gaussian(self.batch, self.map_width, seed=0),
                0,
            ),
            ".linear",
        )[self.settle :]
        return (levels[0] - levels[-1]) / (len(levels) - 1)

    def _map(self, values: dict[tuple[float, float], float]) -> HeatMap:
        columns, rows = _axis(0.5, 4.0, self.grid), _axis(0.0, 0.5, self.grid)
        line = [critical_point("tanh", q) for q in np.geomspace(1e-4, 4.0, 60).tolist()]
        shown = [point for point in line if point.sigma_w2 <= columns[-1] and point.sigma_b2 <= rows[-1]]
        edge = Curve(
            "edge of chaos, expected",
            tuple(point.sigma_w2 for point in shown),
            tuple(point.sigma_b2 for point in shown),
            Origin.EXPECTED,
        )
        return HeatMap(
            "phases",
            "Gain per layer over weights and biases",
            "Each cell is one measured net: by how many decades the gradient changes per layer on its way "
            "back. Below 0 it vanishes, above 0 it explodes; the dashed line is where theory expects the "
            "change.",
            Axis("σ_w²"),
            Axis("σ_b²"),
            "log10 gain of ‖δ‖ per layer",
            columns,
            rows,
            tuple(tuple(values[b, w] for w in columns) for b in rows),
            (edge,),
        )


def _axis(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, count).tolist())


def _log10_chi(sigma_w2: float, sigma_b2: float) -> float:
    return math.log10(chi("tanh", q_star("tanh", sigma_w2, sigma_b2), sigma_w2))


def _slope(rate: float) -> float:
    return -math.copysign(1.0, math.log(rate)) / (rate * math.log(rate) ** 2)


def _rates(curves: list[Curve]) -> Lines:
    return Lines(
        "rates",
        "χ₁ layer by layer",
        "‖δ_l‖²/‖δ_l₊₁‖² of each layer, mean over random nets; dashed: χ₁ at the fixed point. Below 1 "
        "gradients vanish.",
        Axis("layer, after those in which q settles"),
        Axis("χ₁"),
        tuple(curves),
    )
