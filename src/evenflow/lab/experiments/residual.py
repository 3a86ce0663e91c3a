"""Residual against plain, from ten blocks to a thousand.

A block x + α f(x) passes the gradient on as it is and adds what comes back
through f, so nothing can vanish. With a fresh, zero-mean last weight in f the two
parts are independent and the mean squares add: a rate of 1 + α² · (rate of f).

* He's init: f has rate 2, blocks 3: *exploding*, 3^L.
* Scaled by 1/√L: (1 + 2/L)^L → e², whatever the depth.
* SkipInit (α = 0) and Fixup (last weight 0): exactly 1 at the start.
* LayerNorm in the branch: f's output stays at 1 while x grows, so f matters less
  and less: 1 + 1/q_l with q_l = 2 + l; the product is (2 + L)/2, polynomial.
* A plain net with PyTorch's default loses everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.networks import DeepNet, ResidualNet
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import chain_profile, torch_default, torch_default_bias_variance

FLOAT32_MAX = 38.5
"""log10 of the largest float32; beyond it an exploding net has no numbers."""

KINDS: dict[str, dict[str, Any]] = {
    "residual, He": {"branch": "plain"},
    "residual, 1/√L": {"branch": "scaled"},
    "residual, LayerNorm": {"branch": "plain", "norm_name": "layer"},
    "SkipInit": {"branch": "skipinit"},
    "Fixup": {"branch": "fixup"},
}
"""Name of the curve, and arguments of its net."""

PLAIN = "plain, default init"

EXACT = ("SkipInit", "Fixup")
"""Kinds whose branches start at zero, so that chance has no part."""


@final
@dataclass(frozen=True)
class Residual(Experiment):
    """See the module.

    Attributes:
        blocks: Numbers of residual blocks, two linear layers each.
        width: Units of the stream.
        batch: Samples.
        seeds: Random nets for each number and kind.
    """

    place = 9
    title = "Residual against plain"
    question = "How does the gradient survive ten, a hundred and a thousand residual blocks?"
    expectation = (
        "Skips alone keep it from vanishing, but with He's init it then explodes as 3^L. Scaling the "
        "branches by 1/√L bounds it, a norm in each branch makes it grow only like √L, and branches that "
        "start at zero (SkipInit, Fixup) leave it exactly as it is."
    )
    explains: ClassVar = {"depth_without_skip": "depth", "residual_growth": "depth"}
    quick: ClassVar = {"blocks": (10, 100), "seeds": 6}

    blocks: tuple[int, ...] = (10, 30, 100, 300, 1000)
    width: int = 128
    batch: int = 32
    seeds: int = 10

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        ends: dict[str, list[list[float]]] = {}
        expected: dict[str, list[float]] = {}
        cases = [(name, blocks) for name in (*KINDS, PLAIN) for blocks in self.blocks]
        for name, blocks in track(cases):
            value = self._expected(name, blocks)
            if abs(value) > FLOAT32_MAX:
                continue
            exact = name in EXACT
            levels = [self._measure(name, blocks, seed) for seed in range(1 if exact else self.seeds)]
            ratios = tuple(level[0] for level in levels)
            ends.setdefault(name, []).append(list(ratios))
            expected.setdefault(name, []).append(value)
            comparisons.append(
                Comparison(
                    f"{name}, {blocks} blocks: log10 gain of ‖δ‖",
                    near(value, self._tolerance(name, value), *_FORMULAS[name]),
                    ratios,
                    exact,
                )
            )
        by_depth = [
            curve
            for name, found in ends.items()
            for curve in beside(
                name, self.blocks[: len(found)], list(zip(*found, strict=True)), expected[name]
            )
        ]
        note = (
            "Where float32 has no numbers (He's init from about 160 blocks, the plain net from about 50) "
            "there is nothing to compare, and no point in the picture."
        )
        return Outcome(tuple(comparisons), (_by_depth(by_depth),), (note,))

    def _measure(self, name: str, blocks: int, seed: int) -> list[float]:
        """Gradient along the stream, relative to its end."""
        flow = draw(lambda: self._build(name, blocks), gaussian(self.batch, self.width, seed=seed), seed)
        if name == PLAIN:
            return relative(log10_norms(flow, ".linear"))
        return relative(log10_norms(flow, "stem") + log10_norms(flow, ".after"))

    def _build(self, name: str, blocks: int) -> nn.Module:
        if name == PLAIN:
            return DeepNet(inputs=self.width, width=self.width, depth=2 * blocks + 1)
        return ResidualNet(inputs=self.width, width=self.width, blocks=blocks, **KINDS[name])

    def _expected(self, name: str, blocks: int) -> float:
        if name == PLAIN:
            shape = (self.width, self.width)
            return chain_profile(
                "relu",
                depth=2 * blocks + 1,
                width=self.width,
                sigma_w2=torch_default(shape).sigma_w2,
                sigma_b2=torch_default_bias_variance(shape),
            ).log10_ratio
        rates = {
            "residual, He": 3.0**blocks if blocks < 600 else math.inf,
            "residual, 1/√L": (1 + 2 / blocks) ** blocks,
            "residual, LayerNorm": (2 + blocks) / 2,
        }
        return 0.5 * math.log10(rates.get(name, 1.0))

    def _tolerance(self, name: str, value: float) -> float:
        """Finite width leaves a few per cent, but not where branches start at zero."""
        return 1e-5 if name in EXACT else max(0.15, 0.03 * abs(value))


_FORMULAS = {
    "residual, He": ("½ L log10 3", "A. Veit et al. 2016; THEORY.md, section 2"),
    "residual, 1/√L": ("½ L log10(1 + 2/L)", "S. Hayou et al. 2021; THEORY.md, section 2"),
    "residual, LayerNorm": ("½ log10((2 + L)/2)", "De & Smith 2020; THEORY.md, section 2"),
    "SkipInit": ("0: the branch is off", "De & Smith 2020 (SkipInit)"),
    "Fixup": ("0: the last weight is 0", "Zhang et al. 2019, section 3"),
    PLAIN: (chain.FORMULA, chain.SOURCE),
}


def _by_depth(curves: list[Curve]) -> Lines:
    return Lines(
        "depth",
        "Gradient against the number of blocks",
        "Length of the gradient where the residual stream begins, relative to where it ends. Drawn through: "
        "mean over random nets with its 95 % interval. Dashed: expected. A curve that stays near 1 can be "
        "made as deep as one likes.",
        Axis("residual blocks", log=True),
        Axis("‖δ_first‖/‖δ_last‖", decades=True),
        tuple(curves),
    )
