"""One net and one sample: how far from the mean a single gradient lies.

Mean-field theory gives E‖δ‖², the mean over random nets. That mean is made by
rare large values: ln‖δ‖² is nearly normal with variance β, and a typical net
lies β/2 below the log of the mean.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.picture import Curve, Origin, over_seeds
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import chain_profile


@final
@dataclass(frozen=True)
class OneSample(Experiment):
    """See the module.

    Attributes:
        depth: L, linear layers.
        width: Units per layer.
        groups: Independent groups of nets.
        nets: Random nets per group, from which the spread is taken.
    """

    place = 5
    title = "One net, one sample"
    question = "How far from the expected size may the gradient of one sample in one net lie?"
    expectation = (
        "ln‖δ‖² is nearly normal with variance β = Σ (3 E φ'⁴/(E φ'²)² − 1)/n, 5/n per ReLU layer, around a "
        "centre β/2 below the log of the mean. Deep narrow nets differ widely from each other."
    )
    quick: ClassVar = {"groups": 20, "nets": 20}

    depth: int = 8
    width: int = 128
    groups: int = 40
    nets: int = 50

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        theory = chain_profile("relu", depth=self.depth, width=self.width, sigma_w2=2.0)
        source = "Hanin 2018, theorem 1; Hanin & Nica 2020"
        levels: list[list[float]] = []
        centres, spreads = [], []
        for group in track(range(self.groups)):
            found = [self._measure(group * self.nets + net) for net in range(self.nets)]
            centres.append(statistics.fmean(level[0] for level in found))
            spreads.append(statistics.stdev(level[0] for level in found))
            levels += found
        layers = tuple(range(1, self.depth + 1))
        low, high = zip(*theory.interval(), strict=True)
        centre, spread = theory.typical_log10_gradient_norm, theory.log10_std[0]
        comparisons = (
            Comparison(
                "ReLU, He: mean of log10 ‖δ₁‖/‖δ_L‖",
                near(centre[0], 0.1, "−β/(4 ln 10), β = 5 (L − 1)/n", source),
                tuple(centres),
            ),
            Comparison(
                "ReLU, He: its standard deviation over nets",
                near(spread, 0.15 * spread, "√β/(2 ln 10)", source),
                tuple(spreads),
            ),
        )
        shown = [
            Curve("one net", layers, tuple(level), Origin.MEASURED) for level in levels[: min(8, len(levels))]
        ]
        expected = Curve("expected, with 95 % of all nets", layers, centre, Origin.EXPECTED, low, high)
        mean = over_seeds("mean over nets", layers, levels)
        return Outcome(
            comparisons,
            (chain.picture([*shown, expected, mean], more="The band is where 95 % of all nets should lie."),),
        )

    def _measure(self, seed: int) -> list[float]:
        return chain.gradient_by_layer(width=self.width, depth=self.depth, batch=1, seed=seed, init="he")
