"""Gradients that float16 cannot hold, and the loss scale that brings them back.

The smallest number that float16 holds is 2⁻²⁴; what is at most half of it, 2⁻²⁵ = 3 · 10⁻⁸,
rounds to zero. A gradient whose entries are Gaussian with standard deviation s loses the share

    P(|g| ≤ 2⁻²⁵/S) = erf(2⁻²⁵/(S s √2))

where S is the loss scale: multiplying the loss by S shifts all gradients up before they are
rounded, and the optimizer divides by S again. In a vanishing net s falls layer by layer as
mean-field theory says, so theory alone predicts which layers lose their gradient.

References:
    IEEE 754-2019, table 3.5 (binary16). P. Micikevicius et al., "Mixed precision training",
    ICLR 2018, section 3.2 (loss scaling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from evenflow.flow import FORMATS
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.lab.measuring import gaussian
from evenflow.lab.networks import DeepNet, Init
from evenflow.lab.picture import Axis, Curve, Lines, beside
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.verdict import Comparison, near
from evenflow.theory import chain_profile

HALF_SMALLEST = 2.0 ** (FORMATS["float16"].min_subnormal - 1)
"""Largest number that float16 rounds to zero (a tie goes to the even neighbour, 0)."""

TOLERANCE = 0.11
"""Mean-field theory gives s to .1 decade, as in *init-depth*, and the share changes by at most
2 φ(1) ln 10 = 1.11 per decade of s."""


@final
@dataclass(frozen=True)
class GradientUnderflow(Experiment):
    """See the module.

    Attributes:
        depth: L, linear layers of a tanh net.
        sigma_w2: Weight variance; below 1, so that gradients vanish.
        width: Units per layer.
        batch: Samples.
        scales: S, loss scales.
        seeds: Random nets.
    """

    place = 21
    title = "Underflow in float16, and loss scaling"
    question = (
        "Which share of a vanishing gradient does float16 round to zero, and what does a loss scale save?"
    )
    expectation = (
        "The share of a Gaussian below 2⁻²⁵. It goes from nothing to nearly everything within two decades "
        "of the gradient's size. A loss scale S saves log10 S decades: it shifts where the gradient is lost."
    )
    explains: ClassVar = {"precision_underflow": "lost", "loss_scale_thrashing": "lost"}
    quick: ClassVar = {"seeds": 5}

    depth: int = 40
    sigma_w2: float = 0.3
    width: int = 256
    batch: int = 64
    scales: tuple[float, ...] = (1.0, 2.0**8, 2.0**16)
    seeds: int = 20

    def run(self, track: Track = silently) -> Outcome:
        """See :class:`Experiment`."""
        layers = tuple(range(1, self.depth + 1))
        found = [self._measure(seed) for seed in track(range(self.seeds))]
        comparisons: list[Comparison] = []
        curves: list[Curve] = []
        for number, scale in enumerate(self.scales):
            samples = [one[number] for one in found]
            expected = [self._expected(layer, scale) for layer in layers]
            name = "no loss scale" if scale == 1 else f"loss scale {scale:g}"
            comparisons += [
                Comparison(
                    f"{name}: share lost at layer {layers[place]}",
                    near(expected[place], TOLERANCE, "erf(2⁻²⁵/(S s √2))", "IEEE 754; mean-field s"),
                    tuple(sample[place] for sample in samples),
                )
                for place in self._compared(expected)
            ]
            curves += beside(name, layers, samples, expected)
        picture = Lines(
            "lost",
            "Share of the gradient that float16 rounds to zero",
            "For each layer the share of the entries of ∂L/∂h that become zero when they are cast to "
            "float16. The gradient comes from the right. Drawn through: measured. Dashed: expected from the "
            "variance of the weights alone.",
            Axis("layer, input → loss"),
            Axis("share rounded to zero"),
            tuple(curves),
        )
        return Outcome(tuple(comparisons), (picture,))

    def _measure(self, seed: int) -> list[list[float]]:
        """For each scale and layer, the share of the gradient that a cast to float16 makes zero."""
        with seeded(seed):
            net = DeepNet(
                inputs=self.width,
                width=self.width,
                depth=self.depth,
                act="tanh",
                init=Init("normal", gain=self.sigma_w2**0.5),
            ).double()  # only the cast is to lose anything
        hidden: list[Tensor] = []
        for layer in net.layers:
            layer.get_submodule("linear").register_forward_hook(
                lambda _module, _inputs, out: hidden.append(out)
            )
        output = net(gaussian(self.batch, self.width, seed=seed).double())
        cotangent = torch.randn(output.shape, generator=generator(seed + self.seeds), dtype=torch.float64)
        gradients = torch.autograd.grad(output, hidden, cotangent / math.sqrt(output.numel()))
        return [
            [float(((scale * gradient).half() == 0).double().mean()) for gradient in gradients]
            for scale in self.scales
        ]

    def _expected(self, layer: int, scale: float) -> float:
        """The share above, with s from mean-field theory for a gradient of length 1 at the output."""
        profile = chain_profile("tanh", depth=self.depth, width=self.width, sigma_w2=self.sigma_w2)
        std = 10 ** profile.log10_gradient_norm[layer - 1] / math.sqrt(self.batch * self.width)
        return math.erf(HALF_SMALLEST / (scale * std * math.sqrt(2)))

    def _compared(self, expected: list[float]) -> list[int]:
        """Where the share is nearest to a tenth, a half and nine tenths."""
        return sorted(
            {min(range(self.depth), key=lambda at: abs(expected[at] - share)) for share in (0.1, 0.5, 0.9)}
        )
