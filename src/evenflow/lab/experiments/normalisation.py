"""Normalised against unnormalised, and BatchNorm's own explosion.

A normalisation divides by the size of its input and so, going backwards, does
the gradient: too small weights no longer matter. With ReLU, LayerNorm and
RMSNorm keep the gradient exactly (rate E φ'²/E φ² = 1). BatchNorm divides by the
*variance*, which is smaller than the mean square, so that gradients of plain
nets grow by π/(π − 1) = 1.467 per layer: they explode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks.pieces import NormName
from evenflow.lab.picture import Curve, beside
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import moments, norm_rate, torch_default, torch_default_bias_variance

NORMS: tuple[NormName, ...] = ("none", "layer", "rms", "group", "batch")
KNOWN_BATCH = 4.1
"""log10 over 50 layers of BatchNorm and ReLU (THEORY.md, section 4)."""


@final
@dataclass(frozen=True)
class Normalisation(Experiment):
    """See the module.

    Attributes:
        layers: Gains from layer to layer that are counted. The net has two layers
            more: the first sees the data, not another layer, and the last has no norm.
        width: Units per layer.
        batch: Samples; BatchNorm needs many for theory to hold.
        seeds: Random nets for each norm.
    """

    place = 8
    title = "Normalised against unnormalised"
    question = (
        "What does a normalisation do to the gradient of a deep plain ReLU net with PyTorch's default init?"
    )
    expectation = (
        "Without one the gradient is lost, for the default init is too small. LayerNorm and RMSNorm make up "
        "for it and keep the gradient. BatchNorm overdoes it: gradients explode by 1.467 per layer in the "
        "mean square."
    )
    explains: ClassVar = {"normalization_explosion": "gradient", "missing_normalization": "gradient"}
    quick: ClassVar = {"seeds": 12, "batch": 128}

    layers: int = 49
    width: int = 128
    batch: int = 256
    seeds: int = 20

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        places = tuple(range(1, self.layers + 2))
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for norm_name in track(NORMS):
            levels = [self._measure(norm_name, seed) for seed in range(self.seeds)]
            ratios = tuple(level[0] for level in levels)
            quantity = f"{norm_name}: log10 gain of ‖δ‖ over {self.layers} layers"
            rate, formula, source = self._rate(norm_name)
            expected = 0.5 * self.layers * math.log10(rate)
            tolerance = {"group": 1.0, "batch": 0.2}.get(norm_name, 0.3)
            comparisons.append(Comparison(quantity, near(expected, tolerance, formula, source), ratios))
            line = tuple(0.5 * (self.layers + 1 - place) * math.log10(rate) for place in places)
            curves += beside(norm_name, places, levels, line)
            if norm_name == "batch" and self.layers == 49:
                known = near(KNOWN_BATCH, 0.2, "simulated", "THEORY.md, section 4")
                comparisons.append(Comparison(f"{quantity} (earlier simulation)", known, ratios))
        note = (
            "GroupNorm is compared with the formula of LayerNorm, which it approaches for large groups; "
            "groups of 16 units, as here, differ from it by a few per cent per layer."
        )
        return Outcome(tuple(comparisons), (chain.picture(curves),), (note,))

    def _measure(self, norm_name: NormName, seed: int) -> list[float]:
        levels = chain.gradient_by_layer(
            width=self.width,
            depth=self.layers + 2,
            batch=self.batch,
            seed=seed,
            norm_name=norm_name,
        )
        return levels[1:]

    def _rate(self, norm_name: NormName) -> tuple[float, str, str]:
        shape = (self.width, self.width)
        sigma_w2, sigma_b2 = torch_default(shape).sigma_w2, torch_default_bias_variance(shape)
        if norm_name == "none":
            rate = sigma_w2 * moments("relu").derivative_mean_square
            return rate, "χ₁ = σ_w²/2 = 1/6", "Schoenholz et al. 2017, eq. 15"
        source = "G. Yang et al. 2019, section 3.3"
        if norm_name == "batch":
            return norm_rate("relu", "batch_norm"), "E φ'²/Var φ = π/(π − 1)", source
        kind = norm_rate(
            "relu", "rms_norm" if norm_name == "rms" else "layer_norm", sigma_w2=sigma_w2, sigma_b2=sigma_b2
        )
        return kind, "σ_w² E φ'²/(σ_w² E φ² + σ_b²)", "the same argument, with the divisor of one sample"
