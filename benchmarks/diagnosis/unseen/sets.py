"""Sets, graphs, experts, networks that make networks: what shares weights in unusual ways."""

from __future__ import annotations

from functools import cache

import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    accuracy,
    cross_entropy,
    digits,
    integers,
    noise,
    r2,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program

# --- sets -------------------------------------------------------------------------------


def clouds(points: int) -> Split:
    """Point clouds of three shapes; which is it?"""
    kind = integers(3, 600, seed=101)
    angle = 6.2832 * uniform(600, points, seed=102)
    ring = torch.stack([angle.cos(), angle.sin()], 2)
    blob = 0.7 * noise(600, points, 2, seed=103)
    line = torch.stack([2 * uniform(600, points, seed=104) - 1, 0.2 * noise(600, points, seed=105)], 2)
    x = torch.stack([ring, blob, line], 1)[torch.arange(600), kind] + 0.15 * noise(600, points, 2, seed=106)
    return split(x, kind)


class DeepSet(nn.Module):
    """Each point by itself, then their sum or mean, then a classifier."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(x)
        out: Tensor = self.whole(h.mean(1) if self.mean else h.sum(1))
        return out


@faulty(
    "deep_sets",
    source="own: the sum over a set, as in the paper, with sets of hundreds",
    fix="the mean over the set",
    symptoms=("exploding_gradient", "loss_not_decreasing", "oscillating", "dead_units", "non_finite"),
    causes=("learning_rate_too_high", "missing_normalization", "unscaled_input", "dead_relu"),
)
def sum_of_many(fixed: bool) -> Program:
    """Features are summed over 400 points, so that a usual rate is some hundred times too high."""
    return supervised(lambda: DeepSet(fixed), clouds(400), cross_entropy, sgd(0.1, 0.9), 120, batch=32)


# --- graphs -----------------------------------------------------------------------------


@cache
def society() -> tuple[Tensor, Split]:
    """Who knows whom among 300 people of three groups, with some 30 friends each, and noisy features."""
    group = integers(3, 300, seed=111)
    chance = torch.where(group[:, None] == group[None], 0.22, 0.05)
    edges = (uniform(300, 300, seed=112) < chance).float().triu(1)
    features = F.one_hot(group, 3).float() @ noise(3, 12, seed=113) + 2.0 * noise(300, 12, seed=114)
    return edges + edges.T + torch.eye(300), Split(features, group, features, group)


class Messages(nn.Module):
    """Sums, or means, over neighbours, then a linear layer and a ReLU."""

    adjacency: Tensor

    def __init__(self, layers: int, mean: bool, skip: bool = False) -> None:
        super().__init__()
        adjacency = society()[0]
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True) if mean else adjacency)
        self.first = nn.Linear(12, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(32) if skip else nn.Identity() for _ in range(layers)])
        self.last = nn.Linear(32, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            new = F.relu(layer(self.adjacency @ norm(x)))
            x = x + new if self.skip else new
        out: Tensor = self.last(x)
        return out


@faulty(
    "gnn",
    source="own: aggr='add' on a dense graph; modelled on questions about first losses of thousands",
    fix="the mean over neighbours",
    symptoms=("exploding_gradient", "oscillating", "loss_not_decreasing", "dead_units"),
    causes=("missing_normalization", "learning_rate_too_high", "init_too_large", "dead_relu"),
)
def sums_over_neighbours(fixed: bool) -> Program:
    """Four sums over 30 neighbours each: outputs of ten thousands."""
    return supervised(
        lambda: Messages(4, fixed), society()[1], cross_entropy, adam(1e-2), 150, shuffled=False
    )


# --- hypernetworks ----------------------------------------------------------------------


def waves() -> Split:
    """Waves of different frequency and phase: their two numbers, where, and the height there."""
    z, at = uniform(2400, 2, seed=121), 2 * uniform(2400, 1, seed=122) - 1
    height = torch.sin((1 + 3 * z[:, :1]) * 2 * at + 3 * z[:, 1:])
    return split(torch.cat([2 * z - 1, at], 1), height)


class Hyper(nn.Module):
    """Makes the weights of a net of 1 → 32 → 32 → 1 from the two numbers of a wave."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 64), nn.ReLU())
        self.sizes = ((1, 32), (32, 32), (32, 1))
        self.heads = nn.ModuleList([nn.Linear(64, i * o + o) for i, o in self.sizes])
        for (i, _), head in zip(self.sizes, self.heads, strict=True):
            assert isinstance(head, nn.Linear)
            if scaled:
                nn.init.normal_(head.weight, std=0.3 / (64 * i) ** 0.5)
                nn.init.normal_(head.bias, std=1 / i**0.5)
            else:
                nn.init.kaiming_normal_(head.weight)
                nn.init.normal_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        z, h = self.trunk(x[:, :2]), x[:, None, 2:]
        for k, ((i, o), head) in enumerate(zip(self.sizes, self.heads, strict=True)):
            made = head(z)
            weight, bias = made[:, : i * o].view(-1, i, o), made[:, None, i * o :]
            h = h @ weight + bias
            if k < 2:
                h = torch.tanh(h)
        return h[:, 0]


@faulty(
    "hypernetwork",
    source="Chang et al., Principled Weight Initialization for Hypernetworks (2020)",
    fix="weights of the heads such that the weights that they make are of the usual size",
    symptoms=("saturation", "loss_not_decreasing", "exploding_gradient"),
    causes=("init_too_large", "saturating_activation"),
)
def weights_for_weights(fixed: bool) -> Program:
    """He's weights in the heads make weights of about 1 for 32 inputs: most tanh are at their ends."""
    return supervised(lambda: Hyper(fixed), waves(), F.mse_loss, adam(1e-3), 400, metric=r2)


# --- experts ----------------------------------------------------------------------------


class Experts(nn.Module):
    """A gate weighs what several small nets say."""

    def __init__(self, inputs: int, outputs: int, gate: float | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, 6)
        if gate is not None:
            nn.init.normal_(self.gate.weight, std=gate)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, outputs)) for _ in range(6)]
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = F.softmax(self.gate(x), -1)
        said = torch.stack([expert(x) for expert in self.experts], 1)
        return (weight[..., None] * said).sum(1)


def trips() -> Split:
    """Seconds that trips of several kinds take."""
    x = noise(1000, 6, seed=131)
    kind = (x[:, :1] > 0).float()
    seconds = 900 + 400 * (kind * x[:, 1:2] + (1 - kind) * x[:, 2:3] * x[:, 3:4])
    return split(x, seconds + 20 * noise(1000, 1, seed=132))


@faulty(
    "mixture_of_experts",
    source="https://github.com/davidmrau/mixture-of-experts/issues/16 (a regression; w_gate becomes NaN)",
    fix="targets standardised",
    symptoms=("non_finite", "exploding_gradient"),
    causes=("unscaled_target", "learning_rate_too_high"),
)
def experts_on_seconds(fixed: bool) -> Program:
    """Targets of about a thousand, gradient descent at .05."""
    data = trips().standardised_targets() if fixed else trips()
    return supervised(lambda: Experts(6, 1), data, F.mse_loss, sgd(0.05, 0.9), 400, metric=r2)


@faulty(
    "mixture_of_experts",
    source="https://github.com/davidmrau/mixture-of-experts/issues/22 (experts become very unequal)",
    fix="gate weights of deviation .02, a rate of 2e-3",
    symptoms=("saturation", "loss_not_decreasing", "dead_units", "vanishing_gradient"),
    causes=("learning_rate_too_high", "init_too_large", "attention_collapse", "dead_relu"),
)
def one_expert_for_all(fixed: bool) -> Program:
    """A gate that is sure of itself from the first step, and a rate that kills the expert it has chosen."""
    return supervised(
        lambda: Experts(64, 10, 0.02 if fixed else 3.0),
        digits(),
        cross_entropy,
        adam(2e-3 if fixed else 0.3),
        250,
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("gnn", 0.85, source="own: eight layers of messages with norms and skips")
def deep_messages() -> Program:
    """Eight layers, the whole graph in each step."""
    return supervised(
        lambda: Messages(8, True, skip=True), society()[1], cross_entropy, adam(5e-3), 120, shuffled=False
    )


@healthy("deep_sets", 0.9, source="own: sums over small sets with Adam")
def sum_of_some() -> Program:
    """Logits of tens at the start, from sums over 60 points; Adam does not mind."""
    return supervised(lambda: DeepSet(False), clouds(60), cross_entropy, adam(2e-3), 250, batch=32)


@healthy("hypernetwork", 0.85, source="own: a conditional field with well made weights")
def made_weights() -> Program:
    """A network in which hardly a weight is a parameter."""
    return supervised(lambda: Hyper(True), waves(), F.mse_loss, adam(2e-3), 500, metric=r2)


@healthy("mixture_of_experts", 0.9, source="own: experts of which the gate uses some more than others")
def unequal_experts() -> Program:
    """Some experts get hardly any gradient; that is what a gate is for."""
    return supervised(lambda: Experts(64, 10, 0.3), digits(), cross_entropy, adam(5e-3), 250, metric=accuracy)
