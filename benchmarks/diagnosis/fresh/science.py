"""Physics-informed networks, graphs, policies and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import (
    Split,
    accuracy,
    cross_entropy,
    evaluated,
    integers,
    noise,
    r2,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def field() -> nn.Sequential:
    """Three tanh layers."""
    return nn.Sequential(
        nn.Linear(1, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 1),
    )


def oscillator(unit: float, optimizer: Any, steps: int) -> Program:
    """U'' = −u, u(0) = 1, u'(0) = 0 up to t = 6; ``unit`` is how many of the network's units make 1."""

    def residual(model: nn.Module, t: Tensor) -> Tensor:
        s = (t * unit).requires_grad_()
        u = model(s)
        (first,) = torch.autograd.grad(u.sum(), s, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), s, create_graph=True)
        left: Tensor = second * unit**2 + u
        return left

    def loss(model: nn.Module, t: Tensor) -> Tensor:
        zero = torch.zeros(1, 1, requires_grad=True)
        start = model(zero)
        (slope,) = torch.autograd.grad(start.sum(), zero, create_graph=True)
        physics = residual(model, t).square().mean()
        total: Tensor = physics + 10 * ((start - 1).square() + (slope * unit).square()).mean()
        return total

    def metric(model: nn.Module) -> float:
        t = torch.linspace(0, 6, 200)[:, None]
        return evaluated(model, lambda: r2(model(t * unit), t.cos()))

    return Program(
        build=lambda seed: field(),
        optimizer=optimizer,
        batches=lambda seed: [6 * uniform(64, 1, seed=seed + i) for i in range(20)],
        loss=loss,
        steps=steps,
        metric=metric,
    )


@faulty(
    "pinn",
    source="https://github.com/NeuroDiffGym/neurodiffeq/issues/90 (a large domain; rescale it)",
    fix="time in units of its own",
    symptoms=("saturation", "exploding_gradient"),
    causes=("unscaled_input", "saturating_activation"),
)
def large_domain(fixed: bool) -> Program:
    """Time runs to 1 800 in the units that the network sees, so that its first layer saturates."""
    return oscillator(0.5 if fixed else 300.0, adam(3e-3), 1200)


@cache
def graph() -> tuple[Tensor, Split]:
    """A normalised adjacency of 240 nodes in four groups, and their noisy features."""
    group = integers(4, 240, seed=81)
    chance = torch.where(group[:, None] == group[None], 0.08, 0.008)
    edges = (uniform(240, 240, seed=82) < chance).float().triu(1)
    adjacency = edges + edges.T + torch.eye(240)
    degree = adjacency.sum(1)
    features = F.one_hot(group, 4).float() @ noise(4, 16, seed=83) + 1.5 * noise(240, 16, seed=84)
    return adjacency / (degree[:, None] * degree[None]).sqrt(), Split(features, group, features, group)


class GCN(nn.Module):
    """Neighbours are averaged, then a linear layer and a ReLU."""

    adjacency: Tensor

    def __init__(self, layers: int, residual: bool) -> None:
        super().__init__()
        self.register_buffer("adjacency", graph()[0])
        self.first = nn.Linear(16, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(layers)])
        self.last = nn.Linear(32, 4)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.adjacency @ x))
        for layer in self.layers:
            new = F.relu(layer(self.adjacency @ x))
            x = x + 0.3 * new if self.residual else new
        out: Tensor = self.last(x)
        return out


def node_classes(build: Callable[[], nn.Module], optimizer: Any) -> Program:
    """The group of each node; one batch is the whole graph."""
    data = graph()[1]
    return supervised(build, data, cross_entropy, optimizer, 150, shuffled=False)


@faulty(
    "gnn",
    source="https://github.com/lightaime/deep_gcns_torch/issues/10",
    fix="residual connections",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("depth_without_skip", "init_too_small", "missing_normalization"),
)
def deep_gcn(fixed: bool) -> Program:
    """Fourteen graph convolutions without a skip connection."""
    return node_classes(lambda: GCN(14, residual=fixed), adam(5e-3))


def states(count: int, seed: int, raw: bool) -> Tensor:
    """Position in metres, speed, angle, and a battery's millivolts; or all of them of size 1."""
    scale = torch.tensor([200.0, 15.0, 3.0, 4000.0]) if raw else torch.ones(4)
    return noise(count, 4, seed=seed) * scale


def wanted(states: Tensor, raw: bool) -> Tensor:
    """The best action in a state, from −1 to 1."""
    scale = torch.tensor([200.0, 15.0, 3.0, 4000.0]) if raw else torch.ones(4)
    s = states / scale
    return 0.8 * torch.stack([(s[:, 0] - s[:, 1]).tanh(), (s[:, 2] + 0.5 * s[:, 3]).tanh()], 1)


@faulty(
    "policy",
    source="https://github.com/ZhihanLee/DDPG_Learning/issues/2 (actions at their bounds; normalise states)",
    fix="states of size 1",
    symptoms=("saturation", "loss_not_decreasing"),
    causes=("unscaled_input", "saturating_activation"),
)
def actions_at_bounds(fixed: bool) -> Program:
    """A deterministic policy with a tanh at its end climbs a known value; its states are raw."""
    data = [states(64, 90 + i, raw=not fixed) for i in range(20)]

    def value(model: nn.Module, s: Tensor) -> Tensor:
        cost: Tensor = (model(s) - wanted(s, raw=not fixed)).square().sum(1).mean()
        return cost

    test = states(400, 89, raw=not fixed)
    return Program(
        build=lambda seed: nn.Sequential(
            nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2), nn.Tanh()
        ),
        optimizer=adam(1e-3),
        batches=lambda seed: data,
        loss=value,
        steps=300,
        metric=lambda model: evaluated(model, lambda: r2(model(test), wanted(test, raw=not fixed))),
    )


@faulty(
    "policy",
    source="modelled on value networks whose returns reach thousands",
    fix="returns divided by their deviation",
    symptoms=("loss_not_decreasing", "exploding_gradient"),
    causes=("unscaled_target",),
)
def returns_in_thousands(fixed: bool) -> Program:
    """A value network of discounted returns of −3 000 to 3 000."""
    x = noise(1500, 6, seed=91)
    y = 1000 * (torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]) + 200
    data = split(x, y)
    return supervised(
        lambda: nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)),
        data.standardised_targets() if fixed else data,
        F.mse_loss,
        adam(1e-3),
        600,
        metric=r2,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("pinn", 0.95, source="Raissi et al. 2019: losses of several terms that fall slowly")
def small_domain() -> Program:
    """An oscillator in good units: the loss falls in jumps over orders of magnitude."""
    return oscillator(0.5, adam(3e-3), 1500)


@healthy("gnn", 0.8, source="Kipf & Welling 2017")
def shallow_gcn() -> Program:
    """Two graph convolutions with weight decay, on one batch that is the whole graph."""
    return node_classes(lambda: GCN(1, residual=False), adam(1e-2, weight_decay=5e-4))


@healthy("policy", 0.8, source="Williams 1992 (REINFORCE): a loss without meaning and noisy gradients")
def bandit_policy() -> Program:
    """Policy gradient of a contextual bandit of four arms: the loss goes up and down, the reward rises."""
    data = [noise(64, 6, seed=300 + i) for i in range(20)]
    test = noise(500, 6, seed=299)
    arms = noise(6, 4, seed=298)

    def loss(model: nn.Module, s: Tensor) -> Tensor:
        choice = torch.distributions.Categorical(logits=model(s))
        arm = choice.sample()
        reward = ((s @ arms).argmax(1) == arm).float()
        gain: Tensor = (choice.log_prob(arm) * (reward - 0.25)).mean() + 0.01 * choice.entropy().mean()
        return -gain

    def metric(model: nn.Module) -> float:
        return evaluated(model, lambda: accuracy(model(test), (test @ arms).argmax(1)))

    return Program(
        build=lambda seed: nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4)),
        optimizer=adam(1e-2),
        batches=lambda seed: data,
        loss=loss,
        steps=500,
        metric=metric,
    )
