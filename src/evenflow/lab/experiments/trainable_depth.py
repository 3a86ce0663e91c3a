"""How deep a plain net may be and still train: about six depth scales.

Two inputs become alike (ordered phase) or unrelated (chaotic phase) after a
number of layers that the correlation's depth scale ξ_c gives. Beyond about 6 ξ_c
the output no longer tells one input from another, and the gradient has vanished
or exploded as well: the net does not train, however long.

The nets are trained for a fixed number of steps; *trains* means that the loss
falls below half of ln 10, that of a blind guess, and *does not train* that it
stays above nine tenths of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import DeepNet, Init
from evenflow.lab.picture import Axis, Curve, Lines, Origin, over_seeds
from evenflow.lab.seeds import seeded
from evenflow.lab.tasks import Digits
from evenflow.lab.training import fresh_loss, train
from evenflow.lab.verdict import Comparison, at_least, at_most
from evenflow.theory import FixedPoint, fixed_point

SIGMA_B2 = 0.05
SHALLOW, LIMIT, DEEP = 4, 6, 16
"""Depths in units of ξ_c: one that should train, the rule of thumb, and one that should not.

The limit is not sharp: between 6 and 12 ξ_c nets learn more and more slowly, so that after
200 steps some are halfway."""


@final
@dataclass(frozen=True)
class TrainableDepth(Experiment):
    """See the module.

    Attributes:
        sigma_w2: Weight variances, one curve each.
        scales: Depths in units of ξ_c.
        width: Units per layer.
        steps: SGD steps.
        rate: Learning rate.
        seeds: Nets for each depth.
    """

    place = 7
    title = "How deep a plain net may be"
    question = "Up to which depth does a plain tanh net still learn handwritten digits?"
    expectation = (
        "Up to about six depth scales of the correlation, 6 ξ_c. The scale follows from the variances of "
        "weights and biases alone, before anything is trained."
    )
    quick: ClassVar = {"sigma_w2": (1.0,), "scales": (2, SHALLOW, 8, DEEP), "seeds": 3}

    sigma_w2: tuple[float, ...] = (0.8, 1.0, 1.2)
    scales: tuple[float, ...] = (2, SHALLOW, LIMIT, 8, 12, DEEP)
    width: int = 128
    steps: int = 200
    rate: float = 0.05
    seeds: int = 5

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        blind = Digits().baseline
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        places = {sigma_w2: fixed_point("tanh", sigma_w2, SIGMA_B2) for sigma_w2 in self.sigma_w2}
        cases = [(sigma_w2, scale) for sigma_w2 in self.sigma_w2 for scale in self.scales]
        losses = {case: [self._train(*case, seed) for seed in range(self.seeds)] for case in track(cases)}
        source = "Schoenholz et al. 2017, section 5 and fig. 5"
        for sigma_w2, point in places.items():
            name = f"σ_w² = {sigma_w2:g}, ξ_c = {point.correlation_depth_scale:.1f}"
            for scale, expected in (
                (SHALLOW, at_most(0.5 * blind, f"{SHALLOW} ξ_c < 6 ξ_c: trains", source)),
                (DEEP, at_least(0.9 * blind, f"{DEEP} ξ_c > 6 ξ_c: does not train", source)),
            ):
                if (sigma_w2, scale) in losses:
                    quantity = f"tanh, {name}: loss at {_depth(point, scale)} layers, {scale} ξ_c"
                    comparisons.append(Comparison(quantity, expected, tuple(losses[sigma_w2, scale])))
            found = list(zip(*(losses[sigma_w2, scale] for scale in self.scales), strict=True))
            curves.append(over_seeds(name, self.scales, found))
        ends = (self.scales[0], self.scales[-1])
        curves.append(Curve("blind guess", ends, (blind, blind), Origin.EXPECTED))
        curves.append(Curve("6 ξ_c", (LIMIT, LIMIT), (0.0, blind), Origin.EXPECTED))
        picture = Lines(
            "loss",
            "Loss after training, against depth",
            f"Cross-entropy on fresh digits after {self.steps} steps. Left of the upright line theory "
            "expects nets to train, well to the right of it not; at the level line they know nothing.",
            Axis("depth in units of ξ_c"),
            Axis("loss, nats"),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _train(self, sigma_w2: float, scale: float, seed: int) -> float:
        """Loss on fresh digits after training."""
        point = fixed_point("tanh", sigma_w2, SIGMA_B2)
        init = Init("normal", gain=sigma_w2**0.5, bias_std=SIGMA_B2**0.5)
        with seeded(seed):
            net = DeepNet(
                inputs=64, width=self.width, depth=_depth(point, scale), outputs=10, act="tanh", init=init
            )
        train(net, Digits(), self.steps, rate=self.rate, seed=seed)
        return fresh_loss(net, Digits())


def _depth(point: FixedPoint, scale: float) -> int:
    return max(2, math.floor(scale * point.correlation_depth_scale))
