"""Generative adversarial nets on points of the plane, and the losses that they play with.

The discriminator gives a logit d; D = σ(d) is its belief that a point is real.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.errors import EvenflowError
from evenflow.lab.networks.deep import DeepNet
from evenflow.lab.networks.pieces import ActivationName, InitLike, NormName

AdversarialLoss: TypeAlias = Literal["saturating", "non_saturating", "hinge", "wasserstein"]


class Generator(DeepNet):
    """Noise [B, noise] to points [B, 2]."""

    def __init__(
        self,
        *,
        noise: int = 8,
        width: int = 64,
        depth: int = 4,
        act: ActivationName = "relu",
        init: InitLike = "default",
        norm_name: NormName = "none",
    ) -> None:
        super().__init__(
            inputs=noise, width=width, depth=depth, outputs=2, act=act, init=init, norm_name=norm_name
        )


class Discriminator(DeepNet):
    """Points [B, 2] to logits [B]."""

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 4,
        act: ActivationName = "leaky_relu",
        init: InitLike = "default",
        norm_name: NormName = "none",
    ) -> None:
        super().__init__(
            inputs=2, width=width, depth=depth, outputs=1, act=act, init=init, norm_name=norm_name
        )

    def forward(self, x: Tensor) -> Tensor:
        """Points [B, 2] to logits [B]."""
        return super().forward(x).squeeze(-1)


def generator_loss(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """What the generator lowers, from the logits of its points.

    * saturating: mean log(1 − D), whose slope −σ(d) dies where D is sure;
    * non-saturating: −mean log D, with slope −(1 − σ(d));
    * hinge and Wasserstein: −mean d, with slope −1.

    References:
        I. Goodfellow et al. 2014, section 3; J. H. Lim & J. C. Ye 2017 (hinge);
        M. Arjovsky et al. 2017 (Wasserstein).
    """
    if kind == "saturating":
        return -F.softplus(fake).mean()
    if kind == "non_saturating":
        return F.softplus(-fake).mean()
    if kind in ("hinge", "wasserstein"):
        return -fake.mean()
    raise EvenflowError(f"There is no adversarial loss {kind!r}; take one of {', '.join(_KINDS)}.")


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator lowers, from the logits of real and generated points."""
    if kind in ("saturating", "non_saturating"):
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    raise EvenflowError(f"There is no adversarial loss {kind!r}; take one of {', '.join(_KINDS)}.")


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, source: torch.Generator, weight: float = 10.0
) -> Tensor:
    """WGAN-GP: weight · mean (‖∇d‖ − 1)² at random points between real and generated ones.

    References:
        I. Gulrajani et al., NeurIPS 2017, eq. 3.
    """
    mix = torch.rand(len(real), 1, generator=source)
    points = (mix * real + (1 - mix) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
    penalty: Tensor = weight * (slope.norm(dim=1) - 1).square().mean()
    return penalty


_KINDS = ("saturating", "non_saturating", "hinge", "wasserstein")
