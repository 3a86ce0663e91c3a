"""Weights that are used both ways, against the real modules: transposed decoders, squared errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.predict.oracle import disagreement
from torch import Tensor, nn
from torch.nn import functional as F

INPUTS = torch.randn(24, 192, generator=torch.Generator().manual_seed(100))
"""Of a seed of its own: the weights of draw s begin with the numbers of seed s."""


class Coder(nn.Module):
    """Encoder, activation, decoder."""

    def __init__(self, activation: Callable[[Tensor], Tensor], *, tied: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(192, 128)
        self.decoder = nn.Parameter(torch.empty(192, 128))
        for weight in (self.encoder.weight, self.decoder):
            nn.init.normal_(weight, std=0.08)
        self.activation, self.tied = activation, tied

    def forward(self, x: Tensor) -> Tensor:
        code = self.activation(self.encoder(x))
        return F.linear(code, self.encoder.weight.t() if self.tied else self.decoder)


def squared_error(y: Tensor) -> Tensor:
    return F.mse_loss(y, INPUTS)


@pytest.mark.parametrize("activation", [torch.tanh, F.relu, lambda x: x], ids=["tanh", "relu", "linear"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_of_transposed_weights(activation: Callable[[Tensor], Tensor], tied: bool) -> None:
    """All sites, and the loss, which sees how much of the output is the input."""
    found = disagreement(lambda: Coder(activation, tied=tied), INPUTS, squared_error, draws=8)
    gradients = {site for site in found if site.startswith("parameter_gradient")}
    assert max(abs(found[site][0]) for site in found.keys() - gradients) < 0.02, found
    # Scalar products of samples, twice in Σ (W x) xᵀ, are taken by their mean: up to 40 % of the square here.
    assert max(abs(found[site][0]) for site in gradients) < 0.08, found


class Regression(nn.Module):
    """Two layers; the last has more outputs than inputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 128), nn.Linear(128, outputs)
        nn.init.normal_(self.last.weight, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(F.relu(self.first(x)))
        return y


LOSSES = {
    "mse": lambda y: y.sub(1.0).square().mean(),
    "bce": lambda y: F.binary_cross_entropy_with_logits(y, torch.ones_like(y)),
    "sum": lambda y: y.square().sum(),
}


@pytest.mark.parametrize("outputs", [4, 128, 512])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_residual_holds_the_output(outputs: int, loss: str) -> None:
    """Wᵀ(W h − t) holds h: of its square a share of m/(m + n) for m outputs of n inputs."""
    found = disagreement(lambda: Regression(outputs), INPUTS, LOSSES[loss], draws=8)
    assert max(abs(error) for error, _ in found.values()) < 0.04, found
