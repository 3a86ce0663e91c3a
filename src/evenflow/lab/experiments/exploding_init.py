"""Large initial weights: gradients explode with depth.

The rate per layer is χ = σ_w² E φ'². For ReLU E φ'² = ½ whatever the signal, so
gradients grow by √(σ_w²/2) per layer and σ_w² = 2 (He) is where they do not.
Tanh saturates when weights grow, which lowers E φ'² at the same time: it explodes
later and less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import Init
from evenflow.lab.picture import Curve, beside
from evenflow.lab.verdict import Comparison
from evenflow.theory import chain_profile

CASES = (("relu", 1.0), ("relu", 2.0), ("relu", 4.0), ("relu", 8.0), ("tanh", 4.0), ("tanh", 16.0))
"""Activation and σ_w²."""


@final
@dataclass(frozen=True)
class ExplodingInit(Experiment):
    """See the module.

    Attributes:
        depth: L, linear layers.
        width: Units per layer.
        batch: Samples.
        seeds: Random nets for each case.
    """

    place = 3
    title = "Weights that are too large"
    question = "How fast do gradients explode when initial weights are too large?"
    expectation = (
        "With ReLU by √(σ_w²/2) per layer: kept at σ_w² = 2, doubled per layer at σ_w² = 8. With tanh by "
        "√χ₁, less than the weights suggest, because larger signals saturate more units."
    )
    explains: ClassVar = {"exploding_gradient": "gradient", "init_too_large": "gradient"}
    quick: ClassVar = {"seeds": 6}

    depth: int = 20
    width: int = 256
    batch: int = 64
    seeds: int = 50

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        layers = tuple(range(1, self.depth + 1))
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for act, sigma_w2 in track(CASES):
            levels = [self._measure(act, sigma_w2, seed) for seed in range(self.seeds)]
            theory = chain_profile(act, depth=self.depth, width=self.width, sigma_w2=sigma_w2)
            expected = theory.log10_gradient_norm
            name = f"{act}, σ_w² = {sigma_w2:g}"
            formula = "½ (L − 1) log10(σ_w²/2)" if act == "relu" else chain.FORMULA
            ratios = tuple(level[0] for level in levels)
            comparisons += chain.compare(name, expected[0], ratios, formula=formula)
            curves += beside(name, layers, levels, expected)
        return Outcome(tuple(comparisons), (chain.picture(curves),))

    def _measure(self, act: str, sigma_w2: float, seed: int) -> list[float]:
        return chain.gradient_by_layer(
            width=self.width,
            depth=self.depth,
            batch=self.batch,
            seed=seed,
            act=act,
            init=Init("normal", gain=sigma_w2**0.5),
        )
