"""Distances and decisions: metric learning, two views, values of actions, policies."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from benchmarks.diagnosis.fresh.kit import Split, accuracy, digits, evaluated, noise, r2, split, supervised
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def embedder(width: int = 96, end: int = 16) -> nn.Sequential:
    """From digits to vectors."""
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, end)
    )


def neighbours(model: nn.Module) -> float:
    """Share of test digits whose nearest training digit is of the same kind."""
    data = digits()

    def value() -> float:
        known, asked = model(data.x), model(data.test_x)
        if not bool(torch.isfinite(asked).all()):
            raise ArithmeticError("no numbers")
        return accuracy(F.one_hot(data.y[torch.cdist(asked, known).argmin(1)], 10), data.test_y)

    return evaluated(model, value)


def triplets(hardest: bool, optimizer: Any, steps: int = 250) -> Program:
    """Each anchor with its farthest friend and its nearest stranger, or with all of them."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        distance = (out[:, None] - out[None]).square().sum(2).add(1e-9).sqrt()
        same = y[:, None] == y[None]
        if hardest:
            friend = distance.masked_fill(~same, 0).amax(1)
            stranger = distance.masked_fill(same, 1e9).amin(1)
            return F.relu(friend - stranger + 0.5).mean()
        cost = F.relu(distance[:, :, None] - distance[:, None] + 0.5)[same[:, :, None] & ~same[:, None]]
        return cost.sum() / (cost > 0).sum().clamp(min=1)

    return supervised(embedder, digits(), loss, optimizer, steps, batch=48, judge=neighbours)


@faulty(
    "metric_learning",
    source="https://github.com/omoindrot/tensorflow-triplet-loss/issues/38, "
    "https://github.com/xiaolonw/caffe-video_triplet/issues/8 (the loss stays at the margin; a lower rate)",
    fix="a rate of 1e-3",
    symptoms=("loss_not_decreasing", "dead_units", "vanishing_gradient"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def all_in_one_point(fixed: bool) -> Program:
    """The hardest triplets at a high rate: all vectors become the same, and the loss is the margin."""
    return triplets(True, adam(1e-3 if fixed else 0.1))


def views(of: Any, optimizer: Any, steps: int = 250) -> Program:
    """Two noisy views of a digit belong together, all others do not; ``of`` makes logits of cosines."""

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        a, b = (F.normalize(model(pair[0] + 0.15 * torch.randn_like(pair[0])), dim=1) for _ in range(2))
        return F.cross_entropy(of(a @ b.T), torch.arange(len(a)))

    return Program(
        build=lambda seed: embedder(),
        optimizer=optimizer,
        batches=digits().batches(96),
        loss=loss,
        steps=steps,
        metric=neighbours,
    )


@faulty(
    "contrastive",
    source="own: cosines multiplied by the temperature where they should be divided",
    fix="cosines over the temperature",
    symptoms=("loss_not_decreasing",),
    causes=("wrong_loss_or_output",),
)
def temperature_upside_down(fixed: bool) -> Program:
    """Logits between −.1 and .1: the loss cannot leave log 96."""
    return views(lambda c: c / 0.1 if fixed else c * 0.1, sgd(0.05, 0.9))


# --- values and policies ----------------------------------------------------------------


@cache
def moves() -> Split:
    """States, and the value of each of four actions there, up to some tens."""
    x = noise(1200, 6, seed=401)
    value = 20 + 15 * torch.tanh(x @ noise(6, 4, seed=402) / 2)
    return split(x, value)


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


@faulty(
    "value",
    source="https://github.com/devsisters/DQN-tensorflow/issues/16 (the error is clipped, not its gradient)",
    fix="Huber's loss",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("wrong_loss_or_output", "unscaled_target"),
)
def error_clipped_before_square(fixed: bool) -> Program:
    """Errors beyond ±1 are cut, and give no gradient at all: values of 20 are out of reach."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(out, y) if fixed else (out - y).clamp(-1, 1).square().mean()

    return supervised(lambda: network(4), moves(), loss, adam(3e-3), 400, metric=r2)


@cache
def walks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, rewards, the states after them, and the true values at a discount of .9."""
    x = noise(1500, 6, seed=411)
    turn, _ = torch.linalg.qr(noise(6, 6, seed=412))
    reward, state = torch.tanh(x[:, :1] + x[:, 1:2]), x
    value = torch.zeros(1500, 1)
    for step in range(80):
        value = value + 0.9**step * torch.tanh(state[:, :1] + state[:, 1:2])
        state = state @ turn
    return x, reward, x @ turn, value


def learning_by_difference(optimizer: Any, steps: int) -> Program:
    """Values from rewards and the next state's value; targets by the net itself, without a graph."""
    x, reward, after, value = walks()

    def loss(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            target = batch[1] + 0.9 * model(batch[2])
        return F.mse_loss(model(batch[0]), target)

    def batches(seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(seed))
        return [(x[i], reward[i], after[i]) for i in order.split(64) if len(i) == 64]

    return Program(
        build=lambda seed: network(1),
        optimizer=optimizer,
        batches=batches,
        loss=loss,
        steps=steps,
        metric=lambda model: evaluated(model, lambda: r2(model(x[1200:]), value[1200:])),
    )


@faulty(
    "value",
    source="own: values that chase themselves, at a rate at which they run away",
    fix="a rate of 2e-3",
    symptoms=("exploding_gradient", "non_finite", "loss_not_decreasing", "oscillating", "dead_units"),
    causes=("learning_rate_too_high", "dead_relu"),
)
def values_that_run_away(fixed: bool) -> Program:
    """Gradient descent with momentum at .5, towards targets that move with the net."""
    return learning_by_difference(adam(2e-3) if fixed else sgd(0.5, 0.9), 400)


def bandit(steps: int) -> Program:
    """Draw one of five actions, get 1 if it is the right one for the state."""
    x = noise(1200, 6, seed=421)
    right = (x @ noise(6, 5, seed=422)).argmax(1)
    data = split(x, right)

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        policy = torch.distributions.Categorical(logits=model(pair[0]))
        action = policy.sample()
        gain = (action == pair[1]).float()
        value: Tensor = -(policy.log_prob(action) * (gain - gain.mean())).mean()
        return value

    def metric(model: nn.Module) -> float:
        return evaluated(model, lambda: accuracy(model(data.test_x), data.test_y))

    return Program(
        build=lambda seed: network(5),
        optimizer=adam(3e-3),
        batches=data.batches(128),
        loss=loss,
        steps=steps,
        metric=metric,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy(
    "metric_learning",
    0.93,
    source="https://github.com/omoindrot/tensorflow-triplet-loss/issues/6 (it is normal)",
)
def triplets_near_the_margin() -> Program:
    """The mean over triplets that still cost something stays near the margin while vectors become good."""
    return triplets(False, adam(1e-3), 150)


@healthy("policy", 0.75, source="own: a policy gradient, whose loss says nothing")
def policy_by_chance() -> Program:
    """A loss around 0 that neither falls nor rises."""
    return bandit(500)


@healthy("value", 0.6, source="own: values learned from their own estimates")
def values_by_difference() -> Program:
    """The loss may rise while values grow towards what they should be."""
    return learning_by_difference(adam(3e-3), 1500)
