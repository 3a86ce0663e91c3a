"""Numbers to predict: tables, physical units, prices."""

from __future__ import annotations

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import Split, noise, r2, split, supervised, table, uniform
from benchmarks.diagnosis.recipe import adam, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def houses() -> Split:
    """Prices of 50 000 to 800 000 from area, rooms and age, with noise."""
    u = uniform(600, 3, seed=11)
    x = torch.stack([40 + 200 * u[:, 0], (1 + 6 * u[:, 1]).floor(), 80 * u[:, 2]], 1)
    price = 2500 * x[:, 0] + 20000 * x[:, 1] - 800 * x[:, 2] + 60000 + 15000 * noise(600, seed=12)
    return split(x, price[:, None])


@faulty(
    "regression",
    source="modelled on questions about house prices whose loss turns NaN",
    fix="inputs and targets standardised",
    symptoms=("exploding_gradient", "loss_not_decreasing", "dead_units"),
    causes=("unscaled_target", "unscaled_input", "learning_rate_too_high"),
)
def house_prices(fixed: bool) -> Program:
    """Prices and areas as they come, with gradient descent."""
    data = houses()
    return supervised(
        lambda: nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1)),
        data.standardised().standardised_targets() if fixed else data,
        F.mse_loss,
        sgd(0.01),
        200,
        batch=32,
        metric=r2,
    )


@faulty(
    "regression",
    source="modelled on questions about price models that predict next to nothing after an hour",
    fix="targets standardised",
    symptoms=("loss_not_decreasing", "exploding_gradient"),
    causes=("unscaled_target",),
)
def prices_by_adam(fixed: bool) -> Program:
    """Inputs are standardised, prices are not; Adam walks towards them by a thousandth a step."""
    data = houses().standardised()
    return supervised(
        lambda: nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)),
        data.standardised_targets() if fixed else data,
        F.mse_loss,
        adam(1e-3),
        400,
        batch=32,
        metric=r2,
    )


@faulty(
    "regression",
    source="modelled on threads about PyTorch's warning of sizes [N] and [N, 1] in mse_loss",
    fix="targets of shape [N, 1]",
    symptoms=("loss_not_decreasing",),
    causes=("wrong_loss_or_output",),
)
def broadcast_targets(fixed: bool) -> Program:
    """Outputs [N, 1] against targets [N]: every output is compared with every target."""
    data = table("diabetes").standardised().standardised_targets()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out, y) if fixed else ((out - y.squeeze(1)) ** 2).mean()

    return supervised(
        lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)),
        data,
        loss,
        adam(2e-3),
        150,
        batch=32,
        metric=r2,
    )


@faulty(
    "regression",
    source="modelled on threads about Tanh or Sigmoid after the last layer of a regression",
    fix="no activation at the output, targets standardised",
    symptoms=("saturation", "loss_not_decreasing", "vanishing_gradient"),
    causes=("wrong_loss_or_output", "unscaled_target"),
)
def bounded_progression(fixed: bool) -> Program:
    """A sigmoid output for a score of 25 to 346."""
    data = table("diabetes").standardised()
    end: list[nn.Module] = [] if fixed else [nn.Sigmoid()]
    return supervised(
        lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1), *end),
        data.standardised_targets() if fixed else data,
        F.mse_loss,
        adam(3e-3),
        300,
        batch=32,
        metric=r2,
    )


@faulty(
    "regression",
    source="https://github.com/benmoseley/FBPINNs/issues/2 tells of outputs of 1e-10 and their remedy",
    fix="targets standardised",
    symptoms=("loss_not_decreasing",),
    causes=("unscaled_target", "learning_rate_too_high"),
)
def micrometres(fixed: bool) -> Program:
    """Displacements in metres, about 1e-7 of them: each of Adam's steps is longer than the whole answer."""
    x = noise(800, 6, seed=21)
    y = (torch.tanh(x @ noise(6, 3, seed=22)) @ noise(3, 1, seed=23)) * 2e-7
    data = split(x, y)

    def build() -> nn.Module:
        last = nn.Linear(32, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), last)

    return supervised(
        build, data.standardised_targets() if fixed else data, F.mse_loss, adam(1e-3), 500, metric=r2
    )


@faulty(
    "regression",
    source="modelled on questions about sum in place of mean in a loss",
    fix="mean of squared errors",
    symptoms=("non_finite", "exploding_gradient"),
    causes=("learning_rate_too_high",),
)
def summed_errors(fixed: bool) -> Program:
    """MSELoss(reduction='sum') with a rate that was found for the mean."""
    data = table("diabetes").standardised().standardised_targets()
    return supervised(
        lambda: nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1)),
        data,
        nn.MSELoss(reduction="mean" if fixed else "sum"),
        sgd(0.05),
        200,
        metric=r2,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("regression", 0.7, source="own: a large offset that is learned first")
def offset_first() -> Program:
    """Targets around 30 with a deviation of 5: gradients are huge until the last bias is there."""
    x = noise(800, 8, seed=31)
    y = 30 + 5 * torch.tanh(x @ noise(8, 2, seed=32)).sum(1, keepdim=True) / 1.1
    return supervised(
        lambda: nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1)),
        split(x, y),
        F.mse_loss,
        adam(1e-2),
        900,
        metric=r2,
    )


@healthy("regression", 0.3, source="own: a table with more noise than signal")
def noisy_progression() -> Program:
    """Diabetes progression: half of the variance cannot be explained, so that the loss rests early at .5."""
    return supervised(
        lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)),
        table("diabetes").standardised().standardised_targets(),
        nn.SmoothL1Loss(),
        adam(3e-3, weight_decay=1e-3),
        200,
        batch=32,
        metric=r2,
    )
