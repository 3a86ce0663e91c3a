"""Nets for images: a plain stack of 3×3 convolutions, and residual nets of both kinds."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

from evenflow.lab.networks.pieces import ActivationName, InitLike, NormName, activation, as_init, norm

Kind: TypeAlias = Literal["basic", "bottleneck"]

BOTTLENECK = 4
"""How much narrower the middle of a bottleneck is (He et al. 2016, table 1)."""


class ConvUnit(nn.Module):
    """Convolution with zero padding, then norm and φ (both optional)."""

    def __init__(
        self, inputs: int, outputs: int, norm_name: NormName, act: ActivationName | None, kernel: int = 3
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = norm(norm_name, outputs, images=True) or nn.Identity()
        self.act = activation(act) if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, height, width] to [B, outputs, height, width]."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Head(nn.Module):
    """Mean over pixels, then a linear layer."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to [B, outputs]."""
        y: Tensor = self.linear(x.mean(dim=(2, 3)))
        return y


class PlainCNN(nn.Module):
    """A stack of 3×3 convolutions without skips.

    Args:
        inputs: Channels of the image.
        channels: Channels of every hidden layer.
        depth: Convolutions.
        outputs: Classes.
        act: Activation after each convolution.
        init: How weights start.
        norm_name: Normalisation between convolution and activation.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        channels: int = 16,
        depth: int = 20,
        outputs: int = 10,
        act: ActivationName = "relu",
        init: InitLike = "he",
        norm_name: NormName = "none",
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(ConvUnit(channels if i else inputs, channels, norm_name, act) for i in range(depth))
        )
        self.head = Head(channels, outputs)
        as_init(init).apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, inputs, height, width] to logits [B, outputs]."""
        y: Tensor = self.head(self.body(x))
        return y


class ResidualUnit(nn.Module):
    """φ(x + f(x)): the addition before the activation, as in the first ResNets.

    f is two 3×3 convolutions (basic), or 1×1, 3×3, 1×1 through a quarter of the
    channels (bottleneck); norm and φ between them, and a norm at the end.
    """

    def __init__(self, channels: int, kind: Kind, norm_name: NormName, act: ActivationName) -> None:
        super().__init__()
        middle = max(1, channels // BOTTLENECK)
        units = (
            [ConvUnit(channels, channels, norm_name, act), ConvUnit(channels, channels, norm_name, None)]
            if kind == "basic"
            else [
                ConvUnit(channels, middle, norm_name, act, kernel=1),
                ConvUnit(middle, middle, norm_name, act),
                ConvUnit(middle, channels, norm_name, None, kernel=1),
            ]
        )
        self.branch = nn.Sequential(*units)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to the same shape."""
        y: Tensor = self.act(x + self.branch(x))
        return y


class ResNet(nn.Module):
    """Residual units at one resolution, between a convolution and a linear layer.

    Args:
        inputs: Channels of the image.
        channels: Channels of the residual stream.
        units: Residual units: 2 convolutions each (basic) or 3 (bottleneck).
        kind: ``basic`` or ``bottleneck``.
        outputs: Classes.
        act: Activation.
        init: How weights start.
        norm_name: Normalisation after each convolution.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        channels: int = 16,
        units: int = 10,
        kind: Kind = "basic",
        outputs: int = 10,
        act: ActivationName = "relu",
        init: InitLike = "he",
        norm_name: NormName = "batch",
    ) -> None:
        super().__init__()
        self.stem = ConvUnit(inputs, channels, norm_name, act)
        self.body = nn.Sequential(*(ResidualUnit(channels, kind, norm_name, act) for _ in range(units)))
        self.head = Head(channels, outputs)
        as_init(init).apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, inputs, height, width] to logits [B, outputs]."""
        y: Tensor = self.head(self.body(self.stem(x)))
        return y
