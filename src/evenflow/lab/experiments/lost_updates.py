"""Updates that are lost in bfloat16: steps smaller than half the spacing of the weights.

bfloat16 keeps 8 binary digits. Between 2^e and 2^(e+1) its numbers lie 2^(e−7) apart, and an
update that is less than half of that, 2^(e−8), rounds away: less than 2⁻⁹ of the weight is
always lost, more than 2⁻⁸ never. Adam moves every weight by its learning rate, so with
u = rate exactly the weights from 2^(⌊log2 u⌋ + 9) on stand still, and for U(−k, k), PyTorch's
default with k = 1/√n, that is the share

    1 − 2^(⌊log2 u⌋ + 9)/k.

float16 keeps 11 digits, float32 24: the 9 becomes 12 and 25. The usual remedy is a copy of the
weights in float32 to which updates are added.

References:
    IEEE 754-2019, section 4.3.1 (round to nearest). P. Micikevicius et al., "Mixed precision
    training", ICLR 2018, section 3.1 (master weights). D. Kingma & J. Ba, "Adam", 2015,
    algorithm 1: the first step is rate · g/(|g| + ε).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import gaussian
from evenflow.lab.networks import DeepNet
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.seeds import seeded
from evenflow.lab.training import optimizer
from evenflow.lab.verdict import Comparison, near

DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
"""Binary digits of each format, with the leading one that is not stored."""

TOLERANCE = 0.02
"""Counting n² weights leaves √(p (1 − p))/n = .002; the rest is for steps that the format's own rounding
of Adam's moments takes across a power of two."""


@final
@dataclass(frozen=True)
class LostUpdates(Experiment):
    """See the module.

    Attributes:
        rates: Adam's learning rates.
        width: n, features and units of the layers.
        batch: Samples.
        seeds: Nets.
    """

    place = 22
    title = "Updates lost in bfloat16"
    question = "Which share of the weights stands still because their update is rounded away?"
    expectation = (
        "In bfloat16, of PyTorch's default weights for 256 features, nothing at a learning rate of 10⁻³, "
        "half at 10⁻⁴ and 94 % at 10⁻⁵: there training stops, however right the gradient is. float16 gets "
        "there at an eighth of the rate, and float32 never."
    )
    explains: ClassVar = {"update_lost_to_rounding": "still"}
    quick: ClassVar = {"seeds": 4}

    rates: tuple[float, ...] = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    width: int = 256
    batch: int = 64
    seeds: int = 20

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for kind in track(list(DIGITS)):
            name = str(kind).removeprefix("torch.")
            samples = [[self._measure(kind, rate, seed) for rate in self.rates] for seed in range(self.seeds)]
            expected = [self._expected(kind, rate) for rate in self.rates]
            comparisons += [
                Comparison(
                    f"{name}, rate {rate:.0e}: share of weights that stand still",
                    near(expected[place], TOLERANCE, "1 − 2^(⌊log2 u⌋ + 1 + digits) √n", "IEEE 754"),
                    tuple(sample[place] for sample in samples),
                )
                for place, rate in enumerate(self.rates)
            ]
            curves += beside(name, self.rates, samples, expected)
        picture = Lines(
            "still",
            "Weights that stand still",
            "Share of the weights that are the same before and after a step of Adam, against its learning "
            "rate. Drawn through: measured. Dashed: expected from the format's digits and the init alone.",
            Axis("learning rate", log=True),
            Axis("share that stands still"),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _measure(self, kind: torch.dtype, rate: float, seed: int) -> float:
        """Share of the first layer's weights that one step of Adam leaves as they were."""
        with seeded(seed):
            net = DeepNet(inputs=self.width, width=self.width, depth=3, act="tanh").to(kind)
        weight = net.get_parameter("layers.0.linear.weight")
        before = weight.detach().clone()
        stepper = optimizer("adam", net, rate)
        inputs = gaussian(self.batch, self.width, seed=seed).to(kind)
        net(inputs).square().sum().backward()  # summed: no gradient is near ε
        stepper.step()
        return float((weight.detach() == before).double().mean())

    def _expected(self, kind: torch.dtype, rate: float) -> float:
        """The share above, none of it below 0."""
        still = 2.0 ** (math.floor(math.log2(rate)) + 1 + DIGITS[kind])
        return max(0.0, 1.0 - still * math.sqrt(self.width))
