"""What discriminators become when they may train as long as they like.

Real and generated points are two narrow clouds W apart, so a discriminator can tell them
apart completely, and the loss decides what it makes of that.

* Log loss: separable data have no best logit, it grows for ever. Under gradient descent on a
  homogeneous net of order L the loss falls like 1/(t (ln t)^(2 − 2/L)), and with it σ(d) on
  generated points, which is all the gradient that the saturating generator loss leaves.
* Hinge: stops at a margin of ±1, so that d rises by 2 from one cloud to the other and its
  mean slope is at least 2/W.
* WGAN-GP: maximises the rise minus λ(‖∇d‖ − 1)². Along a segment between the clouds that is
  W w − λ(w − 1)² for a slope w, so not 1 but w = 1 + W/(2λ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.networks import Discriminator, discriminator_loss, generator_loss, gradient_penalty
from evenflow.lab.networks.adversarial import AdversarialLoss
from evenflow.lab.picture import Axis, Lines, over_seeds
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.training import optimizer
from evenflow.lab.verdict import Comparison, at_least, near

SPREAD = 0.1
"""Standard deviation of the clouds, along either axis."""
PENALTY = 10.0
"""λ (Gulrajani et al. 2017, section 4)."""
NAMES: dict[AdversarialLoss, str] = {
    "saturating": "log loss, saturating",
    "non_saturating": "log loss, non-saturating",
    "hinge": "hinge",
    "wasserstein": "WGAN-GP",
}
LOOKS = 13
"""Steps at which the discriminator is looked at, evenly spaced in their logarithm."""


@final
@dataclass(frozen=True)
class TrainedDiscriminators(Experiment):
    """See the module.

    Attributes:
        distance: W, between the clouds.
        width: Units of the discriminators.
        depth: L, linear layers of the discriminators.
        steps: Updates.
        rate: Learning rate of gradient descent, for log loss and hinge.
        adam_rate: Learning rate of Adam, for WGAN-GP.
        batch: Points of each cloud.
        seeds: Discriminators.
    """

    place = 15
    title = "Discriminators that train on"
    question = "What gradient is left for the generator when the discriminator has trained for long?"
    expectation = (
        "With the log loss the discriminator grows ever surer, and the saturating generator loss is left "
        "with a gradient that falls like one over the number of steps. Hinge stops at its margin. WGAN-GP "
        "holds the slope near 1, in fact at 1 + W/(2λ)."
    )
    explains: ClassVar = {"generator_starvation": "gradient"}
    quick: ClassVar = {"steps": 1000, "seeds": 4}

    distance: float = 4.0
    width: int = 64
    depth: int = 3
    steps: int = 3000
    rate: float = 0.1
    adam_rate: float = 1e-3
    batch: int = 64
    seeds: int = 10

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        runs = [(kind, seed) for kind in NAMES for seed in range(self.seeds)]
        gradients: dict[AdversarialLoss, list[list[float]]] = {kind: [] for kind in NAMES}
        ends: dict[AdversarialLoss, list[float]] = {kind: [] for kind in NAMES}
        for kind, seed in track(runs):
            gradient, end = self._train(kind, seed)
            gradients[kind].append(gradient)
            ends[kind].append(end)
        curves = tuple(over_seeds(name, self._steps(), gradients[kind]) for kind, name in NAMES.items())
        picture = Lines(
            "gradient",
            "Gradient that the generator gets while the discriminator trains",
            "Mean length of the gradient at generated points, against the discriminator's steps; the "
            "generator stands still. A curve that falls starves the generator, and one that rises feeds it "
            "more and more.",
            Axis("steps of the discriminator", log=True),
            Axis("gradient at a generated point", decades=True),
            curves,
        )
        return Outcome(self._compare(ends), (picture,))

    def _compare(self, ends: dict[AdversarialLoss, list[float]]) -> tuple[Comparison, ...]:
        log_factor = (2 - 2 / self.depth) / math.log(self.steps)
        growth = near(
            -1 - log_factor,
            log_factor,
            "−1 − (2 − 2/L)/ln t, where the logarithm may count once, twice or not",
            "Lyu & Li 2020, theorem 4.3",
        )
        critic = 1 + self.distance / (2 * PENALTY)
        return (
            Comparison(
                "log loss: slope of log10 σ(d) against log10 of the steps, last decade",
                growth,
                tuple(ends["saturating"]),
            ),
            Comparison(
                "hinge: mean ‖∇d‖ between the clouds",
                at_least(2 / self.distance, "2/W: from −1 to 1 over the distance W", "Lim & Ye 2017, eq. 8"),
                tuple(ends["hinge"]),
            ),
            Comparison(
                "WGAN-GP: mean ‖∇d‖ between the clouds",
                # Twice the share of W by which segments between random points differ in length.
                near(
                    critic,
                    2 * math.sqrt(2) * SPREAD / self.distance,
                    "1 + W/(2λ), the maximum of W w − λ(w − 1)²",
                    "Gulrajani et al. 2017, eq. 3",
                ),
                tuple(ends["wasserstein"]),
            ),
        )

    def _steps(self) -> tuple[int, ...]:
        """When to look."""
        return tuple(sorted({round(self.steps ** (look / (LOOKS - 1))) for look in range(LOOKS)}))

    def _train(self, kind: AdversarialLoss, seed: int) -> tuple[list[float], float]:
        """The generator's gradient at every look (log10), and what is compared of this loss."""
        with seeded(seed):
            net = Discriminator(width=self.width, depth=self.depth)
        source = generator(seed)
        adam = kind == "wasserstein"  # plain descent is slow to balance the penalty
        stepper = optimizer("adam" if adam else "sgd", net, self.adam_rate if adam else self.rate)
        times, looks, surely = frozenset(self._steps()), [], {}
        for step in range(1, self.steps + 1):
            real, fake = self._cloud(0.5, source), self._cloud(-0.5, source)
            loss = discriminator_loss(kind, net(real), net(fake))
            if kind == "wasserstein":
                loss = loss + gradient_penalty(net, real, fake, source, PENALTY)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            if step in times:
                gradient, belief = _gradient(net, kind, self._cloud(-0.5, source))
                looks.append(gradient)
                surely[step] = belief
        if kind in ("saturating", "non_saturating"):
            last = max(surely)
            first = min(surely, key=lambda step: abs(step - last / 10))
            return looks, (surely[last] - surely[first]) / math.log10(last / first)
        return looks, self._slope(net, source)

    def _cloud(self, place: float, source: torch.Generator) -> Tensor:
        """Points around a centre, ``place`` times the distance along the first axis."""
        points = SPREAD * torch.randn(self.batch, 2, generator=source)
        points[:, 0] += place * self.distance
        return points

    def _slope(self, net: Discriminator, source: torch.Generator) -> float:
        """Mean ‖∇d‖ at random points between the clouds."""
        mix = torch.rand(self.batch, 1, generator=source)
        points = mix * self._cloud(0.5, source) + (1 - mix) * self._cloud(-0.5, source)
        points.requires_grad_()
        (slope,) = torch.autograd.grad(net(points).sum(), points)
        return float(slope.norm(dim=1).mean())


def _gradient(net: Discriminator, kind: AdversarialLoss, fake: Tensor) -> tuple[float, float]:
    """log10 of the mean gradient that a generated point gets, and of the mean σ(d) there."""
    fake.requires_grad_()
    logits = net(fake)
    (gradient,) = torch.autograd.grad(len(fake) * generator_loss(kind, logits), fake)
    belief = logits.detach().double().sigmoid().mean()
    return math.log10(float(gradient.double().norm(dim=1).mean())), math.log10(float(belief))
