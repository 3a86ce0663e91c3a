"""Multilayer perceptrons on tables and small images."""

from __future__ import annotations

from itertools import pairwise

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import (
    accuracy,
    cross_entropy,
    digits,
    half_accuracy,
    sign_accuracy,
    split,
    supervised,
    table,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, adamw, sgd
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def dense(widths: list[int], activation: type[nn.Module], last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1], *([last] if last is not None else []))


@faulty(
    "mlp",
    source="modelled on forum threads on sigmoid networks that predict one class only",
    fix="ReLU in place of sigmoid",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("saturating_activation", "depth_without_skip"),
)
def sigmoid_tower(fixed: bool) -> Program:
    """Five sigmoid layers of PyTorch's default weights on digits, plain gradient descent."""
    hidden = nn.ReLU if fixed else nn.Sigmoid
    return supervised(
        lambda: dense([64, 64, 64, 48, 48, 32, 10], hidden),
        digits(),
        cross_entropy,
        sgd(0.1, 0.9),
        300,
    )


@faulty(
    "mlp",
    source="https://discuss.pytorch.org/t/loss-not-converging-on-a-binary-classification-problem/177433",
    fix="learning rate .1",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low",),
)
def timid_table(fixed: bool) -> Program:
    """Seven min-max scaled columns, Xavier weights, gradient descent with a rate of 1e-4."""

    class CustomModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(7, 60)
            self.fc2 = nn.Linear(60, 100)
            self.fc3 = nn.Linear(100, 30)
            self.fc4 = nn.Linear(30, 2)
            for layer in (self.fc1, self.fc2, self.fc3, self.fc4):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc1(x))
            x = F.relu(self.fc2(x))
            x = F.relu(self.fc3(x))
            out: Tensor = self.fc4(x)
            return out

    x = uniform(400, 7, seed=5)
    data = split(x, (x[:, 0] + x[:, 1] > x[:, 2] + x[:, 3]).long())
    return supervised(CustomModel, data, cross_entropy, sgd(0.1 if fixed else 1e-4), 400, batch=32)


@faulty(
    "mlp",
    source="modelled on threads about a rate of .5 with momentum, copied from plain gradient descent",
    fix="learning rate .01",
    symptoms=("non_finite", "exploding_gradient", "loss_not_decreasing"),
    causes=("learning_rate_too_high",),
)
def bold_table(fixed: bool) -> Program:
    """A wide rectifier network on a standardised table learns at first, then blows up."""
    return supervised(
        lambda: dense([30, 128, 128, 2], nn.ReLU),
        table("breast_cancer").standardised(),
        cross_entropy,
        sgd(0.01 if fixed else 0.5, 0.9),
        200,
        batch=32,
    )


@faulty(
    "mlp",
    source="modelled on forum threads on nn.init.normal_ with its default deviation",
    fix="Kaiming initialisation",
    symptoms=("exploding_gradient", "oscillating"),
    causes=("init_too_large",),
)
def unit_normal(fixed: bool) -> Program:
    """Weights from nn.init.normal_(w), deviation 1, in four rectifier layers."""

    def build() -> nn.Module:
        model = dense([64, 128, 128, 64, 10], nn.ReLU)
        for layer in model:
            if isinstance(layer, nn.Linear):
                if fixed:
                    nn.init.kaiming_normal_(layer.weight)
                else:
                    nn.init.normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return model

    return supervised(build, digits(), cross_entropy, adam(1e-3), 300)


@faulty(
    "mlp",
    source="modelled on questions about networks whose weights all start at one constant",
    fix="PyTorch's default weights",
    symptoms=("loss_not_decreasing",),
    causes=("zero_init_symmetry", "init_too_small"),
)
def constant_weights(fixed: bool) -> Program:
    """Every weight starts at .01, every bias at 0, so that the units of a layer stay copies of each other."""

    def build() -> nn.Module:
        model = dense([64, 64, 64, 10], nn.ReLU)
        if not fixed:
            for p in model.parameters():
                nn.init.constant_(p, 0.01 if p.dim() > 1 else 0.0)
        return model

    return supervised(build, digits(), cross_entropy, adam(3e-3), 300)


@faulty(
    "mlp",
    source="modelled on questions about the wine table whose loss stays at 1.09",
    fix="standardised inputs",
    symptoms=("loss_not_decreasing", "exploding_gradient", "dead_units"),
    causes=("unscaled_input", "dead_relu", "learning_rate_too_high"),
)
def raw_wine(fixed: bool) -> Program:
    """The wine table as it comes, one of its columns reaching 1 600, with gradient descent."""
    data = table("wine")
    return supervised(
        lambda: dense([13, 32, 16, 3], nn.ReLU),
        data.standardised() if fixed else data,
        cross_entropy,
        sgd(0.05, 0.9),
        250,
        batch=16,
    )


@faulty(
    "mlp",
    source="modelled on beginners' notebooks: raw columns, sigmoids, MSELoss on a class",
    fix="standardised inputs, logits with BCEWithLogitsLoss",
    symptoms=("saturation", "loss_not_decreasing"),
    causes=("unscaled_input", "wrong_loss_or_output", "saturating_activation"),
)
def raw_and_squared(fixed: bool) -> Program:
    """Two faults: columns up to 4 000 into sigmoids, and a squared error of a sigmoid for a class."""
    data = table("breast_cancer")
    data = (data.standardised() if fixed else data).map(y=lambda y: y.float()[:, None])
    return supervised(
        lambda: dense([30, 32, 16, 1], nn.Sigmoid, None if fixed else nn.Sigmoid()),
        data,
        F.binary_cross_entropy_with_logits if fixed else F.mse_loss,
        sgd(0.5),
        300,
        batch=32,
        metric=sign_accuracy if fixed else half_accuracy,
    )


@faulty(
    "mlp",
    source="modelled on forum threads on .data and .detach() in forward",
    fix="no detach",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("features", "features.0", "features.2"),
)
def cut_in_forward(fixed: bool) -> Program:
    """Features are detached before the head, so that only the head learns; they are few, and random."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU())
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.features(x)
            out: Tensor = self.head(h if fixed else h.detach())
            return out

    return supervised(Net, digits(), cross_entropy, adam(1e-2), 300)


@faulty(
    "mlp",
    source="own experience: BatchNorm in a deep plain stack (Yang et al. 2019)",
    fix="skip connections around each layer",
    symptoms=("exploding_gradient",),
    causes=("normalization_explosion", "depth_without_skip"),
)
def normalised_tower(fixed: bool) -> Program:
    """Fifty layers of Linear, BatchNorm, ReLU without a skip connection."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32)

        def forward(self, x: Tensor) -> Tensor:
            out = F.relu(self.norm(self.linear(x)))
            return x + out if fixed else out

    return supervised(
        lambda: nn.Sequential(nn.Linear(64, 32), *[Layer() for _ in range(50)], nn.Linear(32, 10)),
        digits(),
        cross_entropy,
        sgd(0.01, 0.9),
        200,
    )


@faulty(
    "mlp",
    source="modelled on threads in which nn.Softmax follows a layer of one unit",
    fix="logits with BCEWithLogitsLoss",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("wrong_loss_or_output",),
)
def softmax_of_one(fixed: bool) -> Program:
    """A softmax over a single unit always says 1."""
    data = table("breast_cancer").standardised().map(y=lambda y: y.float()[:, None])
    return supervised(
        lambda: dense([30, 32, 1], nn.ReLU, None if fixed else nn.Softmax(dim=1)),
        data,
        F.binary_cross_entropy_with_logits if fixed else F.binary_cross_entropy,
        adam(1e-3),
        200,
        batch=32,
        metric=sign_accuracy if fixed else half_accuracy,
    )


@faulty(
    "mlp",
    source="modelled on tanh networks whose weights are drawn with a deviation of .01 by hand",
    fix="Xavier initialisation",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("init_too_small", "depth_without_skip"),
)
def small_tanh(fixed: bool) -> Program:
    """Seven tanh layers with weights of deviation .01."""

    def build() -> nn.Module:
        model = dense([64, 64, 64, 64, 64, 64, 64, 10], nn.Tanh)
        for layer in model:
            if isinstance(layer, nn.Linear):
                if fixed:
                    nn.init.xavier_normal_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        return model

    return supervised(build, digits(), cross_entropy, sgd(0.05, 0.9), 250)


# --- healthy ----------------------------------------------------------------------------


@healthy("mlp", 0.93, source="He et al. 2015: plain rectifiers with the right weights")
def plain_twelve() -> Program:
    """Twelve plain rectifier layers of He's weights; no norm, no skip, and it learns."""

    def build() -> nn.Module:
        model = dense([64, *[96] * 11, 10], nn.ReLU)
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return model

    return supervised(build, digits(), cross_entropy, adam(5e-4), 400)


@healthy("mlp", 0.9, source="own: label smoothing leaves a floor under the loss")
def smoothed_floor() -> Program:
    """Label smoothing of .3: the loss soon rests at 1.2 or so, while all is learned."""
    return supervised(
        lambda: dense([64, 128, 10], nn.GELU),
        digits(),
        lambda out, y: F.cross_entropy(out, y, label_smoothing=0.3),
        adamw(2e-3),
        400,
    )


@healthy("mlp", 0.93, source="own: training with two samples a step")
def pairs() -> Program:
    """Batches of two: the loss jumps from step to step, and still it learns."""
    return supervised(
        lambda: dense([30, 16, 2], nn.Tanh),
        table("breast_cancer").standardised(),
        cross_entropy,
        sgd(0.02),
        1500,
        batch=2,
    )


@healthy("mlp", 0.9, source="own: parity, which is flat for long and then learned")
def parity_plateau() -> Program:
    """The parity of three of twelve signs: a plateau, then a fall."""
    x = (uniform(4000, 12, seed=3) > 0.5).float() * 2 - 1
    data = split(x, (x[:, 0] * x[:, 1] * x[:, 2] > 0).long())
    return supervised(lambda: dense([12, 128, 128, 2], nn.ReLU), data, cross_entropy, adam(1e-3), 800)


@healthy("mlp", 0.85, source="own: one per cent rate by a cycle that starts tiny")
def one_cycle() -> Program:
    """OneCycleLR starts at a 25th of its peak and ends near 0; gradients are clipped at .5 throughout."""
    return supervised(
        lambda: dense([64, 64, 64, 10], nn.SiLU),
        digits(),
        cross_entropy,
        sgd(0.01, 0.9, nesterov=True),
        500,
        clip=0.5,
        scheduler=lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.2, total_steps=501),
    )


@healthy("mlp", 0.85, source="own: a table of mixed scales behind a BatchNorm and Adam")
def mixed_scales() -> Program:
    """Columns from .001 to 1 600 as they come; BatchNorm at the entrance makes them even."""
    return supervised(
        lambda: nn.Sequential(nn.BatchNorm1d(13), *dense([13, 32, 3], nn.ReLU)),
        table("wine"),
        cross_entropy,
        adam(3e-3),
        250,
        batch=16,
        metric=accuracy,
    )
