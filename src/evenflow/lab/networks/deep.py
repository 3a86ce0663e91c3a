"""Deep feed-forward nets: the plain chain, and the same with skips.

The plain chain is the one that theory speaks of (:mod:`evenflow.theory.chains`):

    h_l = W_l x_{l−1} + b_l,   x_l = φ(norm(h_l)),   l = 1 … L, no φ after h_L.

Its pre-activations are the outputs of the modules ``layers.0.linear`` …
``layers.{L−1}.linear``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from evenflow.lab.networks.pieces import ActivationName, InitLike, NormName, activation, as_init, norm

Branch: TypeAlias = Literal["plain", "scaled", "skipinit", "fixup"]


class Layer(nn.Module):
    """norm and φ (both optional) after a linear map."""

    def __init__(self, inputs: int, outputs: int, act: ActivationName | None, norm_name: NormName) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = norm(norm_name, outputs) if act is not None else None
        self.act = activation(act) if act is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)


class DeepNet(nn.Module):
    """A plain chain of linear layers.

    Args:
        inputs: Features of the input.
        width: Units of every hidden layer.
        depth: Linear layers in all, at least 1.
        outputs: Features of the output; by default ``width``.
        act: Activation between the layers.
        init: How weights start.
        norm_name: Normalisation between each linear map and its activation.
    """

    def __init__(
        self,
        *,
        inputs: int = 128,
        width: int = 128,
        depth: int = 20,
        outputs: int | None = None,
        act: ActivationName = "relu",
        init: InitLike = "default",
        norm_name: NormName = "none",
    ) -> None:
        super().__init__()
        widths = [inputs, *[width] * (depth - 1), width if outputs is None else outputs]
        self.layers = nn.Sequential(
            *(
                Layer(n, m, act if number < depth else None, norm_name)
                for number, (n, m) in enumerate(pairwise(widths), start=1)
            )
        )
        as_init(init).apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        y: Tensor = self.layers(x)
        return y


class ResidualBlock(nn.Module):
    """x + α f(x) with f(x) = W₂ φ(norm(W₁ x)): the gradient has a way around f.

    With ``act_after_sum`` it is φ(x + α f(x)), the addition before the
    activation as in the first ResNets; the way around f then leads through φ.
    """

    def __init__(
        self,
        width: int,
        act: ActivationName,
        norm_name: NormName,
        alpha: float,
        *,
        learned: bool,
        act_after_sum: bool,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = norm(norm_name, width) or nn.Identity()
        self.act = activation(act)
        self.second = nn.Linear(width, width)
        if learned:
            self.alpha: Tensor = nn.Parameter(torch.tensor(alpha))
        else:
            self.register_buffer("alpha", torch.tensor(alpha))
        self.after = activation(act) if act_after_sum else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] to [B, width]."""
        branch = self.second(self.act(self.norm(self.first(x))))
        y: Tensor = self.after(x + self.alpha * branch)
        return y


class ResidualNet(nn.Module):
    """A chain of residual blocks between two linear layers.

    Args:
        inputs: Features of the input.
        width: Units of the residual stream.
        blocks: Residual blocks, two linear layers each.
        outputs: Features of the output; by default ``width``.
        act: Activation within the branches.
        init: How weights start, before ``branch`` changes them.
        norm_name: Normalisation within the branches.
        branch: ``plain`` x + f(x); ``scaled`` x + f(x)/√blocks; ``skipinit``
            x + αf(x) with a learned α that starts at 0; ``fixup`` x + f(x) with
            W₁ scaled by blocks^(−½) and W₂ = 0.
        act_after_sum: Whether the activation follows the addition.

    References:
        K. He et al., CVPR 2016. S. De & S. Smith, NeurIPS 2020 (SkipInit).
        H. Zhang et al., "Fixup initialization", ICLR 2019, section 3: scale
        L^(−1/(2m−2)) for branches of m layers, here m = 2.
    """

    def __init__(
        self,
        *,
        inputs: int = 128,
        width: int = 128,
        blocks: int = 10,
        outputs: int | None = None,
        act: ActivationName = "relu",
        init: InitLike = "he",
        norm_name: NormName = "none",
        branch: Branch = "plain",
        act_after_sum: bool = False,
    ) -> None:
        super().__init__()
        alpha = {"scaled": blocks**-0.5, "skipinit": 0.0}.get(branch, 1.0)
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    width,
                    act,
                    norm_name,
                    alpha,
                    learned=branch == "skipinit",
                    act_after_sum=act_after_sum,
                )
                for _ in range(blocks)
            )
        )
        self.head = nn.Linear(width, width if outputs is None else outputs)
        as_init(init).apply(self)
        if branch == "fixup":
            with torch.no_grad():
                for block in self.blocks:
                    assert isinstance(block, ResidualBlock)
                    block.first.weight.mul_(blocks**-0.5)
                    block.second.weight.zero_()
                    block.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y
