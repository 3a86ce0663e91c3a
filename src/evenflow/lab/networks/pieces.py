"""What all networks of the lab are made of: an activation, a normalisation and an init, each by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from evenflow.errors import EvenflowError

ActivationName: TypeAlias = str | Callable[[], nn.Module]
"""A key of :data:`ACTIVATIONS`, with the names of ``torch.nn.functional``; or what makes another one."""

NormName: TypeAlias = Literal["none", "batch", "layer", "rms", "group"]

InitName: TypeAlias = Literal["default", "glorot", "he", "lecun", "orthogonal", "normal"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
}

GROUPS = 8
"""Groups of a GroupNorm, or as many as divide the features if 8 does not."""


@dataclass(frozen=True, slots=True)
class Init:
    """How linear and convolutional layers start.

    Attributes:
        name: ``default`` leaves what PyTorch draws, U(±1/√fan_in) for weights
            and biases. The others set biases to N(0, bias_std²) and weights to:
            ``glorot`` Var 2/(fan_in + fan_out), ``he`` 2/fan_in, ``lecun`` and
            ``normal`` 1/fan_in, all Gaussian; ``orthogonal`` orthogonal rows or
            columns of length 1.
        gain: Multiplies the weights' standard deviation. For ``normal`` this is σ_w.
        bias_std: σ_b.

    References:
        X. Glorot & Y. Bengio 2010, eq. 16; K. He et al. 2015, eq. 10; Y. LeCun
        et al. 1998, eq. 16; A. Saxe et al. 2014, section 3.
    """

    name: InitName = "default"
    gain: float = 1.0
    bias_std: float = 0.0

    def __post_init__(self) -> None:
        _known(self.name, get_args(InitName), "init")

    def apply(self, model: nn.Module) -> None:
        """Draw the weights and biases of every linear and convolutional layer anew."""
        if self.name == "default":
            return
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                self._draw(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=self.bias_std)

    def _draw(self, weight: Tensor) -> None:
        if self.name == "glorot":
            nn.init.xavier_normal_(weight, gain=self.gain)
        elif self.name == "orthogonal":
            nn.init.orthogonal_(weight, gain=self.gain)
        else:
            fan_in = weight[0].numel()
            variance = (2.0 if self.name == "he" else 1.0) / fan_in
            nn.init.normal_(weight, std=self.gain * math.sqrt(variance))


InitLike: TypeAlias = Init | InitName


def as_init(init: InitLike) -> Init:
    """An :class:`Init`, also from its name alone."""
    return init if isinstance(init, Init) else Init(init)


def activation(name: ActivationName) -> nn.Module:
    """The activation of that name, with PyTorch's own settings; or what ``name`` makes.

    Raises:
        EvenflowError: There is none.
    """
    if not isinstance(name, str):
        return name()
    _known(name, ACTIVATIONS, "activation")
    return ACTIVATIONS[name]()


def norm(name: NormName, features: int, *, images: bool = False) -> nn.Module | None:
    """A normalisation layer with scale 1 and shift 0, or None.

    Args:
        name: Which one.
        features: Width of the layer, or channels of an image.
        images: Whether inputs are [batch, features, height, width] instead of
            [..., features]. Layer and RMS norm then take channels and pixels
            together, as GroupNorm with one group does.

    Raises:
        EvenflowError: There is no such norm.
    """
    _known(name, get_args(NormName), "norm")
    if name == "none":
        return None
    if name == "batch":
        return nn.BatchNorm2d(features) if images else nn.BatchNorm1d(features)
    if name == "group":
        return nn.GroupNorm(math.gcd(GROUPS, features), features)
    if name == "layer":
        return nn.GroupNorm(1, features) if images else nn.LayerNorm(features)
    return ImageRMSNorm(features) if images else nn.RMSNorm(features)


class ImageRMSNorm(nn.Module):
    """x/√(mean of x² over channels and pixels), times a learned scale per channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to the same shape."""
        mean_square = x.square().mean(dim=(1, 2, 3), keepdim=True)
        return self.weight * x * torch.rsqrt(mean_square + self.eps)


def _known(name: str, names: object, what: str) -> None:
    offered = list(names)  # type: ignore[call-overload]
    if name not in offered:
        raise EvenflowError(f"There is no {what} {name!r} in the lab. It has: {', '.join(offered)}.")
