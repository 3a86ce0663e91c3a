"""Fields and motions: neural ODEs, sine networks, networks that obey an equation, rotations."""

from __future__ import annotations

import math
from typing import Any

import sklearn.datasets
import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    accuracy,
    cross_entropy,
    evaluated,
    noise,
    r2,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn

from evenflow import Program

# --- neural ODEs ------------------------------------------------------------------------


def spiral() -> Split:
    """Where a point of a spiral is after 3 s, from where it starts."""
    start = 2 * (2 * uniform(800, 2, seed=51) - 1)
    x = start.clone()
    matrix = torch.tensor([[-0.15, 1.6], [-1.6, -0.15]])
    for _ in range(300):
        x = x + 0.01 * (x @ matrix.T + 0.2 * torch.sin(2 * x))
    return split(start, x)


class Motion(nn.Module):
    """Euler's steps of a learned velocity."""

    def __init__(self, steps: int, time: float, std: float | None = None) -> None:
        super().__init__()
        self.velocity = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))
        if std is not None:
            for layer in self.velocity:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=std)
        self.steps, self.time = steps, time

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = x + self.time / self.steps * self.velocity(x)
        return x


@faulty(
    "neural_ode",
    source="https://github.com/rtqichen/torchdiffeq/issues/149 (sound at first, then NaN)",
    fix="weights of deviation .1, as in the examples of torchdiffeq",
    symptoms=("exploding_gradient", "saturation", "loss_not_decreasing", "non_finite"),
    causes=("init_too_large", "recurrent_gain_too_large", "long_recurrence"),
)
def motion_with_large_weights(fixed: bool) -> Program:
    """Weights of deviation 1.5 in a velocity that is applied 40 times."""
    return supervised(
        lambda: Motion(40, 3.0, 0.1 if fixed else 1.5),
        spiral(),
        nn.functional.mse_loss,
        adam(5e-3),
        300,
        metric=r2,
    )


class Flowing(nn.Module):
    """A layer, an ODE, a layer; ``cut`` solves the ODE without a graph."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 16)
        self.velocity = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 2)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cut):
            for _ in range(8):
                h = h + 0.25 * self.velocity(h)
        out: Tensor = self.head(h)
        return out


@faulty(
    "neural_ode",
    source="https://github.com/SciML/DiffEqFlux.jl/issues/7 (the solver's answer is not tracked)",
    fix="the solver inside the graph",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("velocity", "encoder", "velocity.0", "velocity.2"),
)
def motion_without_a_graph(fixed: bool) -> Program:
    """The ODE is solved under no_grad to save memory; only the last layer learns."""
    x, y = sklearn.datasets.make_circles(800, noise=0.08, factor=0.5, random_state=2)
    data = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    return supervised(lambda: Flowing(not fixed), data, cross_entropy, adam(5e-3), 300, metric=accuracy)


# --- sine networks ----------------------------------------------------------------------


class Sine(nn.Module):
    """sin(30 (W x + b)), with SIREN's weights or PyTorch's own."""

    def __init__(self, inputs: int, outputs: int, siren: bool, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        if siren:
            bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
            nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def picture(side: float, offset: float) -> Split:
    """Brightness of a smooth picture at points of a square of a side, moved by an offset."""
    at = 2 * uniform(2400, 2, seed=61) - 1
    value = (
        torch.sin(5 * at[:, 0] + 3 * at[:, 1] ** 2) * torch.cos(6 * at[:, 1]) + (-(at**2).sum(1) * 6).exp()
    )
    return split(at * side / 2 + offset, value[:, None])


def sine_network(data: Split, siren: bool, optimizer: Any, steps: int = 400) -> Program:
    """Three sine layers and a linear one."""

    def build() -> nn.Module:
        last = nn.Linear(64, 1)
        if siren:
            nn.init.uniform_(last.weight, -math.sqrt(6 / 64) / 30, math.sqrt(6 / 64) / 30)
        return nn.Sequential(
            Sine(2, 64, siren, True), Sine(64, 64, siren, False), Sine(64, 64, siren, False), last
        )

    return supervised(build, data, nn.functional.mse_loss, optimizer, steps, batch=256, metric=r2)


@faulty(
    "sine_network",
    source="https://github.com/vsitzmann/siren/issues/19 (diverges; inputs from −1 to 1 help)",
    fix="coordinates from −1 to 1, a rate of 1e-3",
    symptoms=("loss_not_decreasing", "exploding_gradient", "oscillating"),
    causes=("unscaled_input", "learning_rate_too_high"),
)
def sines_of_pixel_numbers(fixed: bool) -> Program:
    """Coordinates are the numbers of rows and columns, up to 256."""
    return sine_network(
        picture(2.0, 0.0) if fixed else picture(256.0, 128.0), True, adam(1e-3 if fixed else 5e-3)
    )


@faulty(
    "sine_network",
    source="https://github.com/lucidrains/siren-pytorch/issues/1 (weights that are not SIREN's)",
    fix="SIREN's initial weights",
    symptoms=("loss_not_decreasing", "exploding_gradient"),
    causes=("init_too_large",),
)
def sines_with_usual_weights(fixed: bool) -> Program:
    """nn.Linear's own weights, which 30 makes twelve times too large."""
    return sine_network(picture(2.0, 0.0), fixed, adam(1e-3))


# --- equations --------------------------------------------------------------------------


def heat(activation: type[nn.Module], hidden: int, optimizer: Any, steps: int) -> Program:
    """U'' = −(π² sin πx + 4π² sin 2πx) with u(−1) = u(1) = 0."""

    def build(seed: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(1, 32), activation()]
        for _ in range(hidden):
            layers += [nn.Linear(32, 32), activation()]
        return nn.Sequential(*layers, nn.Linear(32, 1))

    def truth(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x) + torch.sin(2 * math.pi * x)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        force = math.pi**2 * (torch.sin(math.pi * x) + 4 * torch.sin(2 * math.pi * x))
        ends = model(torch.tensor([[-1.0], [1.0]]))
        total: Tensor = (bend + force.detach()).square().mean() / 100 + 10 * ends.square().mean()
        return total

    def metric(model: nn.Module) -> float:
        x = torch.linspace(-1, 1, 200)[:, None]
        return evaluated(model, lambda: r2(model(x), truth(x)))

    return Program(
        build=build,
        optimizer=optimizer,
        batches=lambda seed: [2 * uniform(64, 1, seed=seed + i) - 1 for i in range(20)],
        loss=loss,
        steps=steps,
        metric=metric,
    )


@faulty(
    "pinn",
    source="own: the sigmoid of old examples in a network that must be differentiated twice",
    fix="tanh in place of the sigmoid",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("saturating_activation", "depth_without_skip", "init_too_small"),
)
def heat_by_sigmoids(fixed: bool) -> Program:
    """Eight layers of sigmoids: slopes of a quarter each, and of their slopes less."""
    return heat(nn.Tanh if fixed else nn.Sigmoid, 7, adam(3e-3), 900)


# --- rotations --------------------------------------------------------------------------


def turned() -> Split:
    """Three points of a body that was turned, and the way that its axis points."""
    axis = nn.functional.normalize(noise(900, 3, seed=71), dim=1)
    mix = noise(3, 9, seed=72) / 3**0.5
    return split(torch.tanh(axis @ mix) + 0.02 * noise(900, 9, seed=73), axis)


@faulty(
    "regression",
    source="https://github.com/papagina/RotationContinuity/issues/11, https://github.com/pytorch/pytorch/issues/8069",
    fix="the cosine kept 1e-4 away from −1 and 1",
    symptoms=("non_finite",),
    causes=("unknown", "wrong_loss_or_output"),
)
def angle_by_arccosine(fixed: bool) -> Program:
    """The loss is an angle: the slope of arccos is infinite where the answer is right."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        cosine = (nn.functional.normalize(out, dim=1) * y).sum(1)
        return (cosine.clamp(-1 + 1e-4, 1 - 1e-4) if fixed else cosine.clamp(-1, 1)).acos().mean()

    def metric(out: Tensor, y: Tensor) -> float:
        return float((nn.functional.normalize(out, dim=1) * y).sum(1).mean())

    return supervised(
        lambda: nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 3)),
        turned(),
        loss,
        adam(5e-3),
        900,
        metric=metric,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("sine_network", 0.95, source="Sitzmann et al., Implicit Neural Representations (2020)")
def sines_as_published() -> Program:
    """Gradients of the first weights are large: each of them is multiplied by 30."""
    return sine_network(picture(2.0, 0.0), True, adam(1e-3))


@healthy("neural_ode", 0.9, source="own: the example of torchdiffeq, in small")
def motion_of_a_spiral() -> Program:
    """Forty steps with the same weights are a long recurrence that does no harm."""
    return supervised(
        lambda: Motion(40, 3.0, 0.1), spiral(), nn.functional.mse_loss, adam(5e-3), 400, metric=r2
    )


@healthy("mlp", 0.85, source="Cohen et al., Gradient Descent at the Edge of Stability (2021)")
def edge_of_stability() -> Program:
    """All samples at once, and a step as long as the curvature just allows: the loss rises now and then."""
    x, y = sklearn.datasets.make_moons(300, noise=0.15, random_state=4)
    data = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y)).standardised()
    return supervised(
        lambda: nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)),
        data,
        cross_entropy,
        sgd(4.0),
        700,
        shuffled=False,
    )
