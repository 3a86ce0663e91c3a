"""A deep feed-forward net: depth, width, activation, init, norm and skips.

Theory: :func:`~evenflow.theory.chain_profile` for the plain chain,
:func:`~evenflow.theory.norm_rate` with a norm in each layer,
:func:`~evenflow.theory.residual_profile` with skips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast, final

from torch import nn

from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.networks import ACTIVATIONS, DeepNet, Init, ResidualNet
from evenflow.lab.networks.deep import Branch
from evenflow.lab.networks.pieces import InitName, NormName
from evenflow.lab.playground.control import Choice, Control, Slider
from evenflow.lab.playground.net import Net, Profile
from evenflow.theory import (
    WeightInit,
    chain_profile,
    kaiming,
    lecun,
    moments,
    norm_rate,
    orthogonal,
    residual_profile,
    torch_default,
    torch_default_bias_variance,
    xavier,
)
from evenflow.theory.norms import Norm

BATCH = 128
"""Samples that a real net is measured with; BatchNorm needs many for theory to hold."""

NORMS: dict[str, Norm] = {
    "batch": "batch_norm",
    "layer": "layer_norm",
    "rms": "rms_norm",
    "group": "layer_norm",
}
"""Norm of the lab to that of theory; GroupNorm goes to LayerNorm as its groups grow."""


@final
@dataclass(frozen=True)
class FeedForward(Net):
    """See the module.

    Attributes:
        depth: Linear layers; with skips, blocks of two linear layers each.
        width: Units of every layer, and features of the input, which is N(0, 1).
        activation: φ.
        init: How weights start.
        gain: Multiplies the standard deviation that ``init`` gives, but not PyTorch's default.
        bias_std: σ_b, likewise.
        norm: Normalisation between each linear map and φ.
        skips: What goes around, see :class:`~evenflow.lab.networks.ResidualNet`.
    """

    places: ClassVar = "layer, input → loss"
    controls: ClassVar[tuple[Control, ...]] = (
        Slider("depth", "Depth", 2, 200, 1, "Layers; with skips, blocks of two layers."),
        Slider("width", "Width", 16, 512, 16, "Units in every layer."),
        Choice(
            "activation",
            "Activation",
            tuple((name, name.replace("_", " ")) for name in ACTIVATIONS if name != "prelu"),
            "φ, after every layer but the last.",
        ),
        Choice(
            "init",
            "Initial weights",
            (
                ("default", "PyTorch's default"),
                ("glorot", "Glorot"),
                ("he", "He"),
                ("lecun", "LeCun"),
                ("orthogonal", "orthogonal"),
            ),
            "How large weights start.",
        ),
        Slider("gain", "Gain", 0.25, 4, 0.05, "Multiplies the initial weights."),
        Slider("bias_std", "Bias σ", 0, 1, 0.05, "Standard deviation of the initial biases."),
        Choice(
            "norm",
            "Normalisation",
            (("none", "none"), ("batch", "batch"), ("layer", "layer"), ("rms", "RMS"), ("group", "group")),
            "Between each layer and its activation.",
        ),
        Choice(
            "skips",
            "Skips",
            (
                ("none", "none"),
                ("plain", "x + f(x)"),
                ("scaled", "x + f(x)/√depth"),
                ("skipinit", "x + 0·f(x), learned"),
            ),
            "What goes around each block.",
        ),
    )

    depth: int = 20
    width: int = 128
    activation: str = "sigmoid"
    init: str = "default"
    gain: float = 1.0
    bias_std: float = 0.0
    norm: str = "none"
    skips: str = "none"

    @property
    def idle(self) -> frozenset[str]:
        """PyTorch's default init has no gain and draws its own biases."""
        return frozenset(("gain", "bias_std") if self.init == "default" else ())

    def expected(self) -> Profile:
        """See :class:`Net`."""
        weight, sigma_b2 = self._weight()
        if self.skips != "none":
            residual = residual_profile(
                self.activation,
                blocks=self.depth,
                sigma_w2=weight.sigma_w2,
                sigma_b2=sigma_b2,
                alpha={"plain": 1.0, "scaled": self.depth**-0.5, "skipinit": 0.0}[self.skips],
                norm=NORMS.get(self.norm, "none"),
                input_mean_square=weight.sigma_w2 + sigma_b2,  # after the stem
            )
            return Profile(residual.log10_gradient_norm)
        if self.norm != "none":
            return Profile(self._normalised(weight.sigma_w2, sigma_b2))
        plain = chain_profile(
            self.activation,
            depth=self.depth,
            width=self.width,
            sigma_w2=weight.sigma_w2,
            sigma_b2=sigma_b2,
            orthogonal=weight.orthogonal,
        )
        low, high = zip(*plain.interval(), strict=True)
        return Profile(plain.log10_gradient_norm, low, high, plain.doubts)

    def measured(self, seed: int = 0) -> Profile:
        """See :class:`Net`."""
        flow = draw(self.build, gaussian(BATCH, self.width, seed=seed), seed)
        endings = (".linear",) if self.skips == "none" else ("stem", ".after")
        return Profile(tuple(relative([level for ending in endings for level in log10_norms(flow, ending)])))

    def build(self) -> nn.Module:
        """The real net; it draws from PyTorch's global state."""
        init = Init(cast("InitName", self.init), gain=self.gain, bias_std=self.bias_std)
        norm = cast("NormName", self.norm)
        if self.skips == "none":
            return DeepNet(
                inputs=self.width,
                width=self.width,
                depth=self.depth,
                act=self.activation,
                init=init,
                norm_name=norm,
            )
        return ResidualNet(
            inputs=self.width,
            width=self.width,
            blocks=self.depth,
            act=self.activation,
            init=init,
            norm_name=norm,
            branch=cast("Branch", self.skips),
        )

    def _weight(self) -> tuple[WeightInit, float]:
        """The distribution of the weights, gain included, and σ_b²."""
        shape = (self.width, self.width)
        if self.init == "default":
            return torch_default(shape), torch_default_bias_variance(shape)
        weight = {
            "glorot": xavier(shape),
            "he": kaiming(shape, nonlinearity="relu"),
            "lecun": lecun(shape),
            "orthogonal": orthogonal(shape),
        }[self.init]
        return replace(weight, variance=weight.variance * self.gain**2), self.bias_std**2

    def _normalised(self, sigma_w2: float, sigma_b2: float) -> tuple[float, ...]:
        """The first norm divides by the size of the data, all others by that of a layer of their own kind."""
        kind = NORMS[self.norm]
        sigma_b2 = 0.0 if kind == "batch_norm" else sigma_b2  # BatchNorm takes a bias away again
        slope = moments(self.activation).derivative_mean_square
        first = 0.5 * math.log10(sigma_w2 * slope / (sigma_w2 + sigma_b2))
        step = 0.5 * math.log10(norm_rate(self.activation, kind, sigma_w2=sigma_w2, sigma_b2=sigma_b2))
        later = [step * (self.depth - layer) for layer in range(2, self.depth + 1)]
        return (first + later[0], *later)
