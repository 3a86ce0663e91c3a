"""A discriminator that is too sure starves the generator.

The generator's gradient passes the loss first. With the original, saturating
loss log(1 − D) its slope in the logit d is −σ(d), which is nothing where the
discriminator is sure that a point is false. The non-saturating loss −log D has
the slope −(1 − σ(d)), close to 1 there; hinge and Wasserstein have −1.

Real points are N(μ, 1), generated ones N(0, 1) along one axis. The best possible
discriminator then has the logit d = μx − μ²/2, which on generated points is
N(−μ²/2, μ²): the expected slopes follow by quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import draw, gaussian
from evenflow.lab.networks import generator_loss
from evenflow.lab.networks.adversarial import AdversarialLoss
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import expect

LOSSES: tuple[AdversarialLoss, ...] = ("saturating", "non_saturating", "hinge")


class _Game(nn.Module):
    """A generator that passes its input on, and the best discriminator for two Gaussians."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.generator = nn.Linear(1, 1)
        self.discriminator = nn.Linear(1, 1)
        with torch.no_grad():
            self.generator.weight.fill_(1.0)
            self.generator.bias.zero_()
            self.discriminator.weight.fill_(distance)
            self.discriminator.bias.fill_(-0.5 * distance**2)

    def forward(self, x: Tensor) -> Tensor:
        """Noise [B, 1] to logits [B, 1]."""
        y: Tensor = self.discriminator(self.generator(x))
        return y


@final
@dataclass(frozen=True)
class DiscriminatorSaturation(Experiment):
    """See the module.

    Attributes:
        distances: μ, between real and generated points in standard deviations.
        batch: Generated points.
        seeds: Batches.
    """

    place = 14
    title = "A discriminator that is too sure"
    question = "How much gradient does the generator get from a discriminator that is sure?"
    expectation = (
        "With the saturating loss the RMS slope √E σ(d)². It falls when the distributions part, and what is "
        "left comes from the few points that could pass for real. With the non-saturating loss "
        "√E (1 − σ(d))², which goes to 1; with hinge and Wasserstein always 1."
    )
    explains: ClassVar = {"discriminator_saturation": "slope"}
    quick: ClassVar = {"seeds": 6}

    distances: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    batch: int = 100_000
    seeds: int = 20

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for kind in track(LOSSES):
            expected = [_expected(kind, distance) for distance in self.distances]
            measured = [
                [self._slope(kind, distance, seed) for distance in self.distances]
                for seed in range(self.seeds)
            ]
            for place, distance in enumerate(self.distances[:1] if kind == "hinge" else self.distances):
                comparisons.append(
                    Comparison(
                        f"{kind}, {distance:g} apart: RMS slope, log10",
                        near(expected[place], 0.05, _FORMULAS[kind], "Goodfellow et al. 2014, section 3"),
                        tuple(sample[place] for sample in measured),
                        kind == "hinge",
                    )
                )
            curves += beside(kind, self.distances, measured, expected)
        picture = Lines(
            "slope",
            "Gradient that reaches the generator",
            "RMS of the slope of the generator's loss in the discriminator's logit, against the distance "
            "between real and generated points in standard deviations. Drawn through: measured; dashed: "
            "expected.",
            Axis("distance μ"),
            Axis("RMS slope", decades=True),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _slope(self, kind: AdversarialLoss, distance: float, seed: int) -> float:
        """log10 RMS of the gradient at the logits, for a loss that is summed, not averaged."""
        flow = draw(
            lambda: _Game(distance),
            gaussian(self.batch, 1, seed=seed),
            seed,
            lambda logits: self.batch * generator_loss(kind, logits),
        )
        return flow.stats(Role.ACTIVATION_GRADIENT)["discriminator"].log10_rms


_FORMULAS = {"saturating": "½ log10 E σ(d)²", "non_saturating": "½ log10 E (1 − σ(d))²", "hinge": "0"}


def _expected(kind: AdversarialLoss, distance: float) -> float:
    """log10 RMS slope over d ~ N(−μ²/2, μ²)."""
    if kind == "hinge":
        return 0.0
    sign = 1.0 if kind == "saturating" else -1.0
    square = expect(
        lambda z: 1 / (1 + np.exp(-sign * (z * distance - 0.5 * distance**2))) ** 2, 1.0, breakpoints=()
    )
    return 0.5 * math.log10(square)
