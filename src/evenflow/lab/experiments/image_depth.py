"""Deep convolutional nets: what zero padding costs, and what skips and norms do.

A 3×3 convolution with He's init keeps the gradient, except at the border: taps
that fall on the padding see nothing. Along one axis of H pixels the mean square
spreads by a matrix with ⅓ on and beside the diagonal, whose largest eigenvalue is
(1 + 2 cos(π/(H + 1)))/3; in the limit of depth each layer costs its square (two
axes), the more the smaller the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from evenflow.lab import chain
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, log10_norms, relative
from evenflow.lab.networks import PlainCNN, ResNet
from evenflow.lab.picture import Curve, beside, over_seeds
from evenflow.lab.seeds import generator
from evenflow.lab.verdict import Comparison, near

SIDES = (4, 8)
ENDS = 5
"""Layers at either end that are left out of the slope: the limit of depth is not reached there."""


@final
@dataclass(frozen=True)
class ImageDepth(Experiment):
    """See the module.

    Attributes:
        depth: Convolutions of the plain nets; the ResNet has half as many units.
        channels: Channels of every layer.
        batch: Images.
        seeds: Random nets for each curve.
    """

    place = 13
    title = "Deep convolutional nets"
    question = "Does He's init keep the gradient in a deep convolutional net?"
    expectation = (
        "Nearly: zero padding costs a little per layer, ((1 + 2 cos(π/(H + 1)))/3)² of the mean square on an "
        "image of H×H pixels, which small images feel. BatchNorm in the plain net makes gradients grow."
    )
    quick: ClassVar = {"seeds": 8}

    depth: int = 30
    channels: int = 48
    batch: int = 8
    seeds: int = 30

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        layers = tuple(range(1, self.depth + 1))
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for side in track(SIDES):
            levels = [self._measure(self._plain, side, seed) for seed in range(self.seeds)]
            slope = math.log10((1 + 2 * math.cos(math.pi / (side + 1))) / 3)
            name = f"plain, {side}×{side} pixels"
            comparisons.append(
                Comparison(
                    f"{name}: log10 gain of ‖δ‖ per layer",
                    near(slope, 0.01, "log10((1 + 2 cos(π/(H + 1)))/3)", "THEORY.md, section 2"),
                    tuple(_slope(level) for level in levels),
                )
            )
            line = tuple(slope * (self.depth - layer) for layer in layers)
            curves += beside(name, layers, levels, line)
        for name, build in (("plain, BatchNorm", self._normed), ("ResNet, BatchNorm", self._residual)):
            levels = [self._measure(build, SIDES[-1], seed) for seed in range(self.seeds)]
            each = 1 if len(levels[0]) == self.depth else 2  # convolutions in a residual unit
            curves.append(over_seeds(name, range(1, each * len(levels[0]) + 1, each), levels))
        note = (
            "No closed form is compared for BatchNorm in a convolutional net; its curves are measured only."
        )
        return Outcome(tuple(comparisons), (chain.picture(curves),), (note,))

    def _plain(self) -> nn.Module:
        return PlainCNN(channels=self.channels, depth=self.depth)

    def _normed(self) -> nn.Module:
        return PlainCNN(channels=self.channels, depth=self.depth, norm_name="batch")

    def _residual(self) -> nn.Module:
        return ResNet(channels=self.channels, units=self.depth // 2)

    def _measure(self, build: Callable[[], nn.Module], side: int, seed: int) -> list[float]:
        """Gradient by layer relative to the last: at convolutions, or along a ResNet's stream."""
        images = torch.randn(self.batch, 1, side, side, generator=generator(seed))
        flow = draw(build, images, seed)
        blocks = [".conv"] if build != self._residual else ["stem.act", *_unit_ends(self.depth // 2)]
        return relative([level for ending in blocks for level in log10_norms(flow, ending)])


def _unit_ends(units: int) -> list[str]:
    return [f"body.{unit}.act" for unit in range(units)]


def _slope(levels: list[float]) -> float:
    """Gain per layer in the direction of the gradient, away from both ends."""
    ends = min(ENDS, (len(levels) - 1) // 3)
    inner = levels[ends : len(levels) - ends]
    return (inner[0] - inner[-1]) / (len(inner) - 1)
