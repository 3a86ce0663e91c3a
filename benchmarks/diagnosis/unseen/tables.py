"""Tables: counts, clocks among the columns, several tasks, words and their company."""

from __future__ import annotations

from functools import cache

import sklearn.datasets
import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    cross_entropy,
    integers,
    noise,
    r2,
    sign_accuracy,
    split,
    supervised,
    uniform,
)
from benchmarks.diagnosis.recipe import adam, sgd
from benchmarks.diagnosis.unseen.collection import faulty, healthy
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


def mlp(
    inputs: int, outputs: int, width: int = 48, activation: type[nn.Module] = nn.ReLU, hidden: int = 2
) -> nn.Sequential:
    """The usual one."""
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers += [nn.Linear(inputs if i == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


@faulty(
    "tabular",
    source="modelled on questions about a Unix time among the columns",
    fix="all columns standardised",
    symptoms=("exploding_gradient", "loss_not_decreasing", "oscillating"),
    causes=("unscaled_input",),
    places=("0", "", "0.weight"),
)
def clock_among_columns(fixed: bool) -> Program:
    """Five good columns, and the seconds since 1970."""
    x, y = noise(900, 5, seed=301), 1.6e9 + 3e7 * uniform(900, 1, seed=302)
    label = (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()
    data = split(torch.cat([x, y], 1), label)
    return supervised(
        lambda: mlp(6, 2), data.standardised() if fixed else data, cross_entropy, adam(2e-3), 300, batch=32
    )


def arrivals() -> Split:
    """How many come in an hour, from the hour, the day and the weather."""
    u = uniform(900, 3, seed=311)
    x = torch.stack([24 * u[:, 0], 365 * u[:, 1], 40 * u[:, 2] - 10], 1)
    rate = torch.exp(1.5 + torch.sin(x[:, 0] / 3.8) + 0.03 * x[:, 2])
    count = torch.poisson(rate, generator=torch.Generator().manual_seed(312))
    return split(x, count[:, None])


@faulty(
    "tabular",
    source="modelled on questions about PoissonNLLLoss that ends as inf or NaN: exp of a large output",
    fix="inputs standardised, a rate of .005",
    symptoms=("non_finite", "exploding_gradient"),
    causes=("unscaled_input", "learning_rate_too_high", "wrong_loss_or_output"),
)
def counts_by_exponential(fixed: bool) -> Program:
    """The day of the year goes through two layers, and the answer through exp."""
    data = arrivals()
    return supervised(
        lambda: mlp(3, 1),
        data.standardised() if fixed else data,
        nn.PoissonNLLLoss(log_input=True),
        sgd(0.005),
        300,
        batch=32,
        metric=lambda out, y: r2(out.exp(), y),
    )


@cache
def company() -> Split:
    """Which word stands beside which: words of one of eight topics keep to themselves."""
    word = integers(80, 4000, seed=321)
    near = (word % 8) + 8 * integers(10, 4000, seed=322)
    far = integers(80, 4000, seed=323)
    x = torch.cat([torch.stack([word, near], 1), torch.stack([word, far], 1)])
    return split(x, torch.cat([torch.ones(4000), torch.zeros(4000)])[:, None])


class SkipGram(nn.Module):
    """The product of two vectors."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.word, self.context = nn.Embedding(80, 24), nn.Embedding(80, 24)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.uniform_(self.word.weight, -bound, bound)
        nn.init.uniform_(self.context.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.word(x[:, 0]) * self.context(x[:, 1])).sum(1, keepdim=True) + self.bias
        return out


@faulty(
    "embedding",
    source="own: word2vec's initial range and rate, a rate that was meant for single pairs",
    fix="Adam at .02",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low", "init_too_small"),
)
def words_and_company(fixed: bool) -> Program:
    """Vectors of a fiftieth, gradient descent at .025 on the mean of 128 pairs."""
    return supervised(
        lambda: SkipGram(0.5 / 24),
        company(),
        F.binary_cross_entropy_with_logits,
        adam(2e-2) if fixed else sgd(0.025),
        300,
        batch=128,
        metric=sign_accuracy,
    )


class Tasks(nn.Module):
    """A trunk, and a head for each of a score, a position and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.score, self.position, self.size = nn.Linear(48, 1), nn.Linear(48, 2), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        return torch.cat([self.score(h), self.position(h), self.size(h)], 1)


def objects() -> Split:
    """Score, position and size of objects."""
    x = noise(900, 8, seed=331)
    y = torch.tanh(x @ noise(8, 4, seed=332) / 2) * torch.tensor([1.0, 2.0, 2.0, 1.5])
    return split(x, y + 0.05 * noise(900, 4, seed=333))


@faulty(
    "multi_task",
    source="https://github.com/tom-roddick/oft/issues/6 (only the score's loss was optimised)",
    fix="all losses in the sum",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached", "wrong_loss_or_output"),
    places=("position", "size"),
)
def only_the_score_is_learned(fixed: bool) -> Program:
    """The other losses are logged, and added as numbers."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        each = ((out - y) ** 2).mean(0)
        rest = each[1:].sum()
        return each[0] + (rest if fixed else rest.item())

    return supervised(Tasks, objects(), loss, adam(3e-3), 300, batch=32, metric=r2)


@faulty(
    "regression",
    source="https://pytorch.org/docs Adam's eps, at the 1.0 that TensorFlow's page recommends for Inception",
    fix="eps of 1e-8",
    symptoms=("loss_not_decreasing",),
    causes=("optimizer_epsilon_dominates", "learning_rate_too_low"),
)
def epsilon_of_one(fixed: bool) -> Program:
    """Gradients of a hundredth beside an eps of 1: Adam becomes slow gradient descent."""
    x, y = sklearn.datasets.make_friedman1(900, noise=0.5, random_state=5)
    data = (
        split(torch.tensor(x).float(), torch.tensor(y).float()[:, None]).standardised().standardised_targets()
    )
    return supervised(
        lambda: mlp(10, 1), data, F.mse_loss, adam(3e-3, eps=1e-8 if fixed else 1.0), 300, metric=r2
    )


@faulty(
    "mixed_precision",
    source="own: model.bfloat16() and Adam at the rate that was used in float32",
    fix="weights in float32",
    symptoms=("loss_not_decreasing",),
    causes=("update_lost_to_rounding",),
)
def forest_in_bfloat16(fixed: bool) -> Program:
    """A step of 5e-5 at weights of a tenth is less than half of bfloat16's spacing there."""
    x, y = sklearn.datasets.make_friedman1(900, noise=0.5, random_state=7)
    data = (
        split(torch.tensor(x).float(), torch.tensor(y).float()[:, None]).standardised().standardised_targets()
    )
    kind = torch.float32 if fixed else torch.bfloat16

    return supervised(
        lambda: mlp(10, 1, width=64).to(kind),
        data.map(x=lambda x: x.to(kind)),
        lambda out, y: F.mse_loss(out.float(), y),
        adam(5e-5),
        1300,
        metric=lambda out, y: r2(out.float(), y),
    )


@faulty(
    "regression",
    source="own: two faults at once, as in first scripts: nothing is scaled, and sigmoids throughout",
    fix="inputs and targets standardised, ReLU",
    symptoms=("saturation", "loss_not_decreasing", "vanishing_gradient", "exploding_gradient"),
    causes=("unscaled_input", "saturating_activation", "unscaled_target"),
)
def friedman_in_thousandths(fixed: bool) -> Program:
    """Inputs up to 1000, targets of about 14, three sigmoid layers."""
    x, y = sklearn.datasets.make_friedman1(900, noise=0.5, random_state=6)
    data = split(torch.tensor(x).float() * 1000, torch.tensor(y).float()[:, None])
    if fixed:
        data = data.standardised().standardised_targets()
    return supervised(
        lambda: mlp(10, 1, activation=nn.ReLU if fixed else nn.Sigmoid, hidden=3),
        data,
        F.mse_loss,
        adam(3e-3),
        300,
        metric=r2,
    )


@faulty(
    "tabular",
    source="own: tensors made by torch.rand as weights, all of them positive",
    fix="He's weights",
    symptoms=("exploding_gradient", "loss_not_decreasing", "dead_units"),
    causes=("init_too_large",),
)
def all_weights_positive(fixed: bool) -> Program:
    """nn.init.uniform_ without bounds: from 0 to 1."""
    x, y = sklearn.datasets.load_iris(return_X_y=True)
    data = split(torch.tensor(x).float(), torch.tensor(y)).standardised()

    def build() -> nn.Module:
        model = mlp(4, 3, hidden=3)
        for layer in model:
            if isinstance(layer, nn.Linear):
                if fixed:
                    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                else:
                    nn.init.uniform_(layer.weight)
        return model

    return supervised(build, data, cross_entropy, sgd(0.02, 0.9), 150, batch=16)


# --- healthy ----------------------------------------------------------------------------


@healthy("tabular", 0.6, source="own: counts with a good scale")
def counts_standardised() -> Program:
    """Losses below 0, gradients that some large counts make ten times larger."""
    return supervised(
        lambda: mlp(3, 1),
        arrivals().standardised(),
        nn.PoissonNLLLoss(log_input=True),
        adam(5e-3),
        500,
        batch=32,
        metric=lambda out, y: r2(out.exp(), y),
    )


@healthy("multi_task", 0.8, source="own: heads whose losses differ by a factor of a hundred")
def unequal_tasks() -> Program:
    """Adam evens out what the losses' scales do to the heads."""
    data = objects()
    scale = torch.tensor([10.0, 1.0, 1.0, 0.3])

    def metric(out: Tensor, y: Tensor) -> float:
        return r2(out / scale, y / scale)

    return supervised(
        Tasks, data.map(y=lambda y: y * scale), F.mse_loss, adam(5e-3), 500, batch=32, metric=metric
    )


@healthy("imbalanced", 0.85, source="Lin et al., Focal Loss (2017)")
def focal_rarity() -> Program:
    """One in thirty is positive; the focal loss starts below .1 and its gradients are tiny."""
    x = noise(1600, 6, seed=341)
    y = ((x[:, 0] + x[:, 1] + 0.5 * x[:, 2] * x[:, 3]) > 3.0).float()[:, None]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(out)
        right = torch.where(y > 0.5, p, 1 - p)
        each = F.binary_cross_entropy_with_logits(out, y, reduction="none")
        return ((1 - right) ** 2 * torch.where(y > 0.5, 0.75, 0.25) * each).mean()

    def metric(out: Tensor, y: Tensor) -> float:
        hit = (out > 0) == (y > 0.5)
        return float((hit[y > 0.5].float().mean() + hit[y < 0.5].float().mean()) / 2)

    return supervised(lambda: mlp(6, 1), split(x, y), loss, adam(5e-3), 400, metric=metric)
