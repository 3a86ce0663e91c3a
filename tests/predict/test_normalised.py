"""x̂ and its cotangent: pair tables against those measured on Gaussian tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evenflow.predict.axes import Array, plain
from evenflow.predict.fields import Leaf
from evenflow.predict.known import measured_in
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.normalised import Normalised, NormCotangent
from evenflow.predict.table import Dims, Table

SHAPE = (3, 6, 40)
"""Samples, channels, positions."""
DIMS: Dims = ((plain(3),), (plain(6),), (plain(40),))
OVER = (1, 2)
DRAWS = 600


def parts(samples: float, channel: float, rest: float) -> Table:
    """What all samples share of a channel, what its positions share, and what they do not."""
    second = np.zeros((2, 2, 2))
    second[:, 1, :] += samples
    second[1, 1, :] += channel
    second[1, 1, 1] += rest
    return Table(DIMS, second, np.zeros((1, 1, 1)))


def drawn(samples: float, channel: float, rest: float, seed: int) -> Tensor:
    """Such tensors [draws, …]."""
    generator = torch.Generator().manual_seed(seed)
    s, c, p = SHAPE
    shapes = ((samples, (1, c, 1)), (channel, (s, c, 1)), (rest, (s, c, p)))
    return sum(
        part**0.5 * torch.randn(DRAWS, *shape, generator=generator, dtype=torch.float64)
        for part, shape in shapes
    )


def averaged(values: Tensor) -> Array:
    """Their table, as mean over draws."""
    found: Array = measured_in(values, ((plain(DRAWS),), *DIMS)).second[1]
    return found


def normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, SHAPE[1:], eps=0.0)


X = (0.2, 0.2, 0.6)
G = (0.1, 0.2, 0.7)


def test_a_norm_sees_the_variance_of_its_own_sample() -> None:
    """The channel means, few, make much of the variance: dividing by its mean is .03 off."""
    hat = Normalised(Leaf(parts(*X)), OVER, 0.0)
    expected = averaged(normal(drawn(*X, 0)))
    plainly = hat.centred(hat.x.table).second / hat.variance.item()
    assert np.abs(hat.table.second - expected).max() < 0.015
    assert np.abs(plainly - expected).max() > 0.025
    assert hat.table.mean_square == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("slope", [None, lambda u: (u > 0).double()], ids=["independent", "behind a ReLU"])
def test_the_cotangent_leaves_out_what_lies_along_x(slope: Callable[[Tensor], Tensor] | None) -> None:
    """Also where gradients of neighbours agree, and where the activation that follows made them."""
    x, g = drawn(*X, 1), drawn(*G, 2)
    x.requires_grad_()
    y = normal(x)
    seed = g if slope is None else g * slope(y.detach())
    y.backward(seed)
    assert x.grad is not None
    expected = averaged(x.grad)
    hat, leaf = Normalised(Leaf(parts(*X)), OVER, 0.0), Leaf(parts(*G), cotangent=True)
    if slope is None:
        cotangent = NormCotangent(leaf, hat)
    else:
        inner = product(SHAPE, leaf, apply(slope, "step", [hat], {}, SHAPE))
        cotangent = NormCotangent(inner, hat, product(SHAPE, inner, hat))
    found = cotangent.table.second
    scale = expected[1, 1, 1]
    assert np.abs(found / scale - expected / scale).max() < 0.01
