"""Sequences: recurrent cells by hand and from PyTorch, sequence to sequence, convolutions over time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from benchmarks.diagnosis.fresh.kit import (
    Split,
    cross_entropy,
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


class Last(nn.Module):
    """A recurrent net, and a linear layer on its last step."""

    def __init__(self, cell: nn.Module, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


def adding(steps: int) -> Split:
    """Two of the numbers are marked, early and late; their sum is asked for."""
    value, mark = uniform(1500, steps, seed=201), torch.zeros(1500, steps)
    first, second = integers(steps // 4, 1500, seed=202), steps // 2 + integers(steps // 2, 1500, seed=203)
    mark[torch.arange(1500), first] = mark[torch.arange(1500), second] = 1.0
    return split(torch.stack([value, mark], 2), (value * mark).sum(1, keepdim=True))


@faulty(
    "rnn",
    source="Le, Jaitly, Hinton, A Simple Way to Initialize Recurrent Networks (2015): the adding problem",
    fix="a GRU",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("long_recurrence", "saturating_activation"),
    places=("cell", "cell.weight_hh_l0"),
)
def sum_of_two_marked(fixed: bool) -> Program:
    """nn.RNN over 60 steps: what was marked early is forgotten."""

    def build() -> nn.Module:
        cell: nn.Module = nn.GRU(2, 32, batch_first=True) if fixed else nn.RNN(2, 32, batch_first=True)
        return Last(cell, 32, 1)

    return supervised(
        build, adding(60), F.mse_loss, adam(1e-2 if fixed else 1e-3), 450, batch=32, metric=r2, clip=1.0
    )


class Weather(nn.Module):
    """An LSTM cell written out, and a forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Linear(3 + 24, 4 * 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        out: Tensor = self.head(h)
        return out


def days() -> Split:
    """Pressure in pascals, temperature in kelvins, moisture in per cent; tomorrow's temperature change."""
    walk = noise(900, 17, 3, seed=211).cumsum(1) / 3
    change = torch.tanh(walk[:, 15, :1] - walk[:, 10, :1]) + 0.5 * walk[:, 15, 1:2] - 0.5 * walk[:, 12, 2:]
    units = torch.tensor([800.0, 6.0, 12.0]), torch.tensor([101325.0, 285.0, 60.0])
    return split(walk[:, :16] * units[0] + units[1], change + 0.1 * noise(900, 1, seed=212))


@faulty(
    "lstm",
    source="modelled on forecasts from raw weather tables, where pressure is told in pascals",
    fix="each column standardised",
    symptoms=("saturation", "vanishing_gradient", "loss_not_decreasing"),
    causes=("unscaled_input", "saturating_activation"),
    places=("gates", ""),
)
def weather_in_pascals(fixed: bool) -> Program:
    """A hundred thousand pascals shut or open each gate for good."""
    data = days()
    if fixed:
        mean, std = data.x.mean((0, 1)), data.x.std((0, 1))
        data = data.map(x=lambda x: (x - mean) / std)
    return supervised(Weather, data, F.mse_loss, adam(5e-3), 300, metric=r2)


# --- sequence to sequence ---------------------------------------------------------------

WORDS = 12


@cache
def reversed_words() -> Split:
    """Eight words, to be said backwards, each as the next in the dictionary."""
    x = integers(WORDS, 1800, 8, seed=221)
    return split(x, (x.flip(1) + 1) % WORDS)


class Translator(nn.Module):
    """GRUs that encode and decode, with attention between them; what is right is fed back in."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS + 1, 16)
        self.encoder = nn.GRU(16, hidden, batch_first=True)
        self.decoder = nn.GRU(16, hidden, batch_first=True)
        self.place = nn.Embedding(8, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.out = nn.Linear(2 * hidden, WORDS)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        source, target = pair
        memory, state = self.encoder(self.word(source))
        start = torch.full_like(target[:, :1], WORDS)
        said, _ = self.decoder(self.word(torch.cat([start, target[:, :-1]], 1)), state)
        key = memory + self.place.weight
        weight = F.softmax(
            self.query(said + self.place.weight) @ key.transpose(1, 2) / key.shape[-1] ** 0.5, -1
        )
        out: Tensor = self.out(torch.cat([said, weight @ memory], 2))
        return out


class Backwards(nn.Module):
    """The translator as a function of one tensor: source and target side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.translator = Translator()

    def forward(self, both: Tensor) -> Tensor:
        out: Tensor = self.translator((both[:, :8], both[:, 8:]))
        return out


def backwards(optimizer: Any, steps: int = 350, **more: Any) -> Program:
    """The next word, given all right ones before it."""
    data = reversed_words()
    both = Split(
        torch.cat([data.x, data.y], 1), data.y, torch.cat([data.test_x, data.test_y], 1), data.test_y
    )
    return supervised(Backwards, both, cross_entropy, optimizer, steps, **more)


@faulty(
    "seq2seq",
    source="https://github.com/guillaumegenthial/sequence_tagging/issues/47 (falls, rises, is NaN)",
    fix="a rate of .005",
    symptoms=("oscillating", "loss_not_decreasing"),
    causes=("learning_rate_too_high",),
)
def translator_in_a_hurry(fixed: bool) -> Program:
    """Adam at .3."""
    return backwards(adam(5e-3 if fixed else 0.3))


# --- text -------------------------------------------------------------------------------


@cache
def syllables() -> Split:
    """Letters of made-up words: consonants and vowels in turn, by a fixed habit."""
    habit = integers(8, 16, 3, seed=231)
    rows = [integers(16, 1200, seed=232)]
    choice = integers(3, 1200, 20, seed=233)
    for t in range(20):
        chosen = habit[rows[-1], choice[:, t].clamp(max=1)]
        rows.append(chosen + 8 if t % 2 == 0 else chosen)
    text = torch.stack(rows, 1)
    return split(text[:, :-1], text[:, 1:])


class Speller(nn.Module):
    """Letters to letters by a GRU; ``end`` comes after the last layer."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.letter, self.cell = nn.Embedding(16, 16), nn.GRU(16, 48, batch_first=True)
        self.head, self.end = nn.Linear(48, 16), end

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.head(self.cell(self.letter(x))[0]))
        return out


@faulty(
    "gru",
    source="modelled on threads where NLLLoss is given probabilities: the loss is negative",
    fix="the logarithm of the softmax",
    symptoms=("loss_not_decreasing", "saturation"),
    causes=("wrong_loss_or_output",),
    places=("end", ""),
)
def likelihood_without_logarithm(fixed: bool) -> Program:
    """NLLLoss on probabilities: where one is small, so is its gradient."""
    return supervised(
        lambda: Speller(nn.LogSoftmax(-1) if fixed else nn.Softmax(-1)),
        syllables(),
        lambda out, y: F.nll_loss(out.flatten(0, 1), y.flatten()),
        sgd(0.1, 0.9),
        250,
        batch=32,
    )


# --- convolutions over time -------------------------------------------------------------


def beats() -> Split:
    """Series of three rhythms."""
    kind, t = integers(3, 900, seed=241), torch.arange(64.0)
    speed = torch.tensor([0.25, 0.4, 0.6])[kind][:, None] * (1 + 0.1 * noise(900, 1, seed=242))
    wave = torch.sin(speed * t + 6.28 * uniform(900, 1, seed=243)) + 0.6 * noise(900, 64, seed=244)
    return split(wave[:, None], kind)


def convolutions(layers: int, std: float | None, norm: bool = False) -> nn.Sequential:
    """Convolutions over time with growing holes, and a classifier."""
    parts: list[nn.Module] = []
    for i in range(layers):
        conv = nn.Conv1d(1 if i == 0 else 24, 24, 3, padding=2 ** (i % 4), dilation=2 ** (i % 4))
        if std is not None:
            nn.init.normal_(conv.weight, std=std)
        parts += [conv, *([nn.BatchNorm1d(24)] if norm else []), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 3))


@faulty(
    "tcn",
    source="Bai, Kolter, Koltun (2018): their N(0, .01), here without their residual paths",
    fix="PyTorch's own weights, norms",
    symptoms=("loss_not_decreasing", "vanishing_gradient"),
    causes=("init_too_small", "depth_without_skip", "missing_normalization"),
)
def convolutions_of_a_hundredth(fixed: bool) -> Program:
    """Eight convolutions that each make their input ten times smaller."""
    return supervised(
        lambda: convolutions(8, None if fixed else 0.01, fixed),
        beats(),
        cross_entropy,
        adam(2e-3),
        160,
        batch=32,
    )


@faulty(
    "tcn",
    source="https://github.com/pytorch/vision/issues/1261, https://github.com/leftthomas/SRGAN/issues/94 "
    "(the scheduler steps with each batch)",
    fix="the rate falls after each hundred steps",
    symptoms=("loss_not_decreasing",),
    causes=("learning_rate_too_low",),
)
def scheduler_in_the_inner_loop(fixed: bool) -> Program:
    """StepLR(8, .1) was meant for epochs: after 24 batches the rate is a thousandth."""
    return supervised(
        lambda: convolutions(4, None, True),
        beats(),
        cross_entropy,
        sgd(0.02),
        250,
        batch=32,
        scheduler=lambda one: torch.optim.lr_scheduler.StepLR(one, 100 if fixed else 8, 0.1),
    )


# --- healthy ----------------------------------------------------------------------------


@healthy("gru", 0.9, source="own: the adding problem, with the cell for it")
def long_memory_gru() -> Program:
    """The loss stands at .17 for some hundred steps, then falls."""
    return supervised(
        lambda: Last(nn.GRU(2, 32, batch_first=True), 32, 1),
        adding(50),
        F.mse_loss,
        adam(1e-2),
        450,
        batch=32,
        metric=r2,
        clip=1.0,
    )


@healthy("seq2seq", 0.9, source="own: attention that learns where to look")
def translator() -> Program:
    """A plateau while attention does not know where to look yet."""
    return backwards(adam(5e-3))


@healthy("lstm", 0.75, source="own: the weather in good units")
def weather_standardised() -> Program:
    """Warm restarts: the loss jumps each time that the rate does."""
    data = days()
    mean, std = data.x.mean((0, 1)), data.x.std((0, 1))
    return supervised(
        Weather,
        data.map(x=lambda x: (x - mean) / std),
        F.mse_loss,
        adam(2e-2),
        360,
        metric=r2,
        scheduler=lambda one: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(one, 60),
    )
