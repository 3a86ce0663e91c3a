"""Twenty sigmoid layers: the product of factors that made gradients vanish.

From the last layer to the first the gradient is multiplied by L − 1 factors
diag(φ') Wᵀ, and φ' ≤ ¼. The classic bound takes the weights as 1 and gives
¼^(L−1); what really happens depends on the init as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.networks import DeepNet
from evenflow.lab.networks.pieces import InitName
from evenflow.lab.picture import Curve, Origin, beside
from evenflow.lab.verdict import Comparison, at_most
from evenflow.theory import ChainProfile, chain_profile, torch_default, torch_default_bias_variance, xavier

REFERENCE: dict[InitName, float] = {"default": -16.17, "glorot": -11.96}
"""log10 ‖δ₁‖/‖δ_L‖ at L = 20, n = 128 (THEORY.md, section 4, simulated)."""

LABELS: dict[InitName, str] = {"default": "PyTorch's default", "glorot": "Glorot"}


@final
@dataclass(frozen=True)
class SigmoidDepth(Experiment):
    """See the module.

    Attributes:
        depth: L, linear layers.
        width: Units per layer.
        batch: Samples.
        seeds: Random nets for each init.
    """

    place = 2
    title = "Twenty sigmoid layers"
    question = "How much of the gradient survives twenty sigmoid layers?"
    expectation = (
        "Next to nothing. Each sigmoid multiplies the gradient by at most ¼, so that with weights that keep "
        "lengths the first of 20 layers gets at most ¼¹⁹ = 10⁻¹¹·⁴. Glorot's init comes close to that; "
        "PyTorch's default has weights √3 smaller and loses four decades more."
    )
    explains: ClassVar = {"vanishing_gradient": "gradient"}
    quick: ClassVar = {"seeds": 8}

    depth: int = 20
    width: int = 128
    batch: int = 64
    seeds: int = 30

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        layers = tuple(range(1, self.depth + 1))
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        largest: list[float] = []
        for init in track(list(REFERENCE)):
            levels, gains = zip(*(self._measure(init, seed) for seed in range(self.seeds)), strict=True)
            expected = self._expected(init).log10_gradient_norm
            as_known = (self.depth, self.width) == (20, 128)
            comparisons += chain.compare(
                LABELS[init],
                expected[0],
                tuple(level[0] for level in levels),
                known=(REFERENCE[init], 0.1) if as_known else None,
            )
            largest += gains
            curves += beside(LABELS[init], layers, levels, expected)
        comparisons.append(
            Comparison(
                "largest gain of one sigmoid, log10",
                at_most(math.log10(0.25), "φ' = φ(1 − φ) ≤ ¼", "calculus"),
                tuple(largest),
            )
        )
        bound = tuple((self.depth - layer) * math.log10(0.25) for layer in layers)
        curves.append(Curve("¼ per layer", layers, bound, Origin.EXPECTED))
        return Outcome(tuple(comparisons), (chain.picture(curves),))

    def _measure(self, init: InitName, seed: int) -> tuple[list[float], float]:
        """Gradient at each pre-activation relative to the last, and the largest gain of one sigmoid."""
        flow = draw(
            lambda: DeepNet(inputs=self.width, width=self.width, depth=self.depth, act="sigmoid", init=init),
            gaussian(self.batch, self.width, seed=seed),
            seed,
        )
        gains = [link.log10_gain for link in flow.budget("module") if link.path.endswith(".act")]
        return relative(log10_norms(flow, ".linear")), max(gains)

    def _expected(self, init: InitName) -> ChainProfile:
        shape = (self.width, self.width)
        weight = torch_default(shape) if init == "default" else xavier(shape)
        bias = torch_default_bias_variance(shape) if init == "default" else 0.0
        return chain_profile(
            "sigmoid", depth=self.depth, width=self.width, sigma_w2=weight.sigma_w2, sigma_b2=bias
        )
