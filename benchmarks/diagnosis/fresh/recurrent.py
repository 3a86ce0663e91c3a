"""Recurrent networks: series, sequences of symbols, sentences."""

from __future__ import annotations

from functools import cache

import torch
from benchmarks.diagnosis.fresh.entry import faulty, healthy
from benchmarks.diagnosis.fresh.kit import (
    Split,
    accuracy,
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
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program


@cache
def first_sign(length: int) -> Split:
    """Whether the first number of a series was positive; the rest is noise."""
    x = 0.3 * noise(1200, length, 1, seed=51)
    x[:, 0] = (uniform(1200, 1, seed=52) > 0.5).float() * 2 - 1
    return split(x, (x[:, 0, 0] > 0).long())


@cache
def waves(length: int = 30) -> Split:
    """Windows of a noisy sum of two waves, and the next value."""
    t = torch.arange(1200.0)
    series = torch.sin(t / 5) + 0.5 * torch.sin(t / 11 + 1) + 0.05 * noise(1200, seed=53)
    windows = series.unfold(0, length + 1, 1)
    return split(windows[:, :-1, None], windows[:, -1:])


def passengers(length: int = 12) -> Split:
    """A rising seasonal series of 100 to 600, like airline passengers."""
    t = torch.arange(700.0)
    series = 120 + 0.5 * t + 40 * torch.sin(t / 6) + 5 * noise(700, seed=54)
    windows = series.unfold(0, length + 1, 1)
    return split(windows[:, :-1, None], windows[:, -1:])


@cache
def text(length: int = 24) -> Split:
    """Pieces of a text made of a small grammar, and the same shifted by one symbol."""
    words = ["the ", "cat ", "dog ", "sat ", "ran ", "on ", "a ", "mat", ". ", "and "]
    picks = integers(len(words), 3000, seed=55).tolist()
    written = "".join(words[i] for i in picks)
    symbols = sorted(set(written))
    codes = torch.tensor([symbols.index(one) for one in written])
    pieces = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    return split(pieces[:, :-1], pieces[:, 1:])


class Reader(nn.Module):
    """A recurrent layer, and a linear one on its last state."""

    def __init__(self, cell: nn.Module, hidden: int, outputs: int, end: nn.Module | None = None) -> None:
        super().__init__()
        self.rnn = cell
        self.fc = nn.Linear(hidden, outputs)
        self.end = end if end is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        out: Tensor = self.end(self.fc(states[:, -1]))
        return out


def weights(cell: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a recurrent layer by name."""
    return dict(cell.named_parameters())


class CharModel(nn.Module):
    """Embedding, recurrent layer, scores of the next symbol."""

    def __init__(self, cell: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM] = nn.GRU) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.rnn = cell(24, 48, batch_first=True)
        self.decode = nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(x))
        out: Tensor = self.decode(states)
        return out


@faulty(
    "rnn",
    source="https://github.com/pytorch/pytorch/issues/2623 and Bengio et al. 1994",
    fix="GRU",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("long_recurrence", "saturating_activation"),
    places=("rnn",),
)
def remember_the_first(fixed: bool) -> Program:
    """A tanh RNN has to keep one sign over 150 steps of noise."""

    def build() -> nn.Module:
        if not fixed:
            return Reader(nn.RNN(1, 24, batch_first=True), 24, 2)
        cell = nn.GRU(1, 24, batch_first=True)
        weights(cell)["bias_hh_l0"].data[24:48] = 4.0  # keep most of the state: chrono initialisation
        return Reader(cell, 24, 2)

    return supervised(build, first_sign(150), cross_entropy, adam(3e-3), 250)


@faulty(
    "rnn",
    source="modelled on 'nan loss in RNN model', discuss.pytorch.org/t/655",
    fix="recurrent weights of the identity times .9, and clipping",
    symptoms=("exploding_gradient", "non_finite"),
    causes=("recurrent_gain_too_large", "init_too_large", "long_recurrence"),
    places=("rnn",),
)
def relu_recurrence(fixed: bool) -> Program:
    """nn.RNN with relu, whose recurrent weights are drawn too large by hand, over forty steps."""

    def build() -> nn.Module:
        cell = nn.RNN(1, 48, nonlinearity="relu", batch_first=True)
        recurrent = weights(cell)["weight_hh_l0"]
        if fixed:
            nn.init.eye_(recurrent).data.mul_(0.9)
        else:
            nn.init.normal_(recurrent, std=0.35)
        return Reader(cell, 48, 1)

    return supervised(build, waves(40), F.mse_loss, sgd(0.01), 200, metric=r2, clip=1.0 if fixed else None)


@faulty(
    "lstm",
    source="https://www.whosebug.com/question/4230002 (eight LSTM layers, one output for all inputs)",
    fix="one layer",
    symptoms=("vanishing_gradient", "loss_not_decreasing"),
    causes=("depth_without_skip", "saturating_activation"),
    places=("rnn",),
)
def stacked_lstm(fixed: bool) -> Program:
    """Eight LSTM layers of sixteen units, from PyTorch's default weights."""
    return supervised(
        lambda: Reader(nn.LSTM(1, 16, 1 if fixed else 8, batch_first=True), 16, 1),
        waves(16),
        F.mse_loss,
        adam(3e-3),
        200,
        batch=32,
        metric=r2,
    )


@faulty(
    "lstm",
    source="https://discuss.pytorch.org/t/loss-not-decreasing-in-lstm-network/159152",
    fix="series standardised",
    symptoms=("loss_not_decreasing", "exploding_gradient", "saturation"),
    causes=("unscaled_target", "unscaled_input"),
)
def passengers_as_they_come(fixed: bool) -> Program:
    """An LSTM is fed with counts of 100 to 600 and has to tell the next one."""
    data = passengers()
    if fixed:
        data = data.map(x=lambda x: (x - 300) / 110, y=lambda y: (y - 300) / 110)
    return supervised(
        lambda: Reader(nn.LSTM(1, 32, batch_first=True), 32, 1),
        data,
        F.mse_loss,
        adam(3e-3),
        300,
        batch=32,
        metric=r2,
    )


@faulty(
    "gru",
    source="own experience: clip_grad_norm_ with 1e-3 copied from elsewhere, and SGD",
    fix="clipping at 5",
    symptoms=("loss_not_decreasing",),
    causes=("clipping_always_active", "learning_rate_too_low"),
)
def strangled(fixed: bool) -> Program:
    """A model of characters whose whole gradient is clipped to a norm of .001, with SGD."""
    return supervised(
        CharModel, text(), cross_entropy, sgd(1.0), 200, clip=5.0 if fixed else 1e-3, metric=accuracy
    )


@faulty(
    "rnn",
    source="modelled on the word language model example: lr=20 without its clipping",
    fix="clipping at .25",
    symptoms=("exploding_gradient", "loss_not_decreasing", "oscillating"),
    causes=("learning_rate_too_high",),
)
def twenty_unclipped(fixed: bool) -> Program:
    """A tanh RNN of characters with a rate of 20, made for clipped gradients."""
    return supervised(
        lambda: CharModel(nn.RNN), text(), cross_entropy, sgd(20.0), 200, clip=0.25 if fixed else None
    )


@faulty(
    "lstm",
    source="modelled on sentiment classifiers with a sigmoid and CrossEntropyLoss",
    fix="no sigmoid before CrossEntropyLoss",
    symptoms=("saturation", "loss_not_decreasing"),
    causes=("wrong_loss_or_output", "saturating_activation"),
)
def sigmoid_sentiment(fixed: bool) -> Program:
    """Six classes, a sigmoid over the scores, CrossEntropyLoss: the loss cannot fall below 1.04."""
    codes = integers(16, 1200, 20, seed=56)
    data = split(codes, (codes < 5).sum(1).clamp(4, 9) - 4)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Embedding(16, 16),
            Reader(nn.LSTM(16, 32, batch_first=True), 32, 6, None if fixed else nn.Sigmoid()),
        )

    return supervised(build, data, cross_entropy, adam(5e-3), 400)


@faulty(
    "gru",
    source="modelled on recurrent code that detaches the state in every step of its loop",
    fix="the state is detached between batches only",
    symptoms=("loss_not_decreasing",),
    causes=("frozen_or_detached",),
    places=("cell",),
)
def detached_states(fixed: bool) -> Program:
    """A GRUCell in a loop that detaches the state each time: nothing is learned across steps."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(1, 24)
            self.fc = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 24)
            for step in x.unbind(1):
                state = self.cell(step, state if fixed else state.detach())
            out: Tensor = self.fc(state)
            return out

    return supervised(Loop, first_sign(12), cross_entropy, adam(5e-3), 250)


# --- healthy ----------------------------------------------------------------------------


@healthy("lstm", 0.55, source="Zaremba et al. 2014: clipping at .25 in nearly every step, with a rate of 20")
def always_clipped() -> Program:
    """A rate of 20 and clipping at .25 belong together: nearly every gradient is clipped, and it learns."""
    return supervised(
        lambda: CharModel(nn.LSTM), text(), cross_entropy, sgd(20.0), 300, clip=0.25, metric=accuracy
    )


@healthy("gru", 0.9, source="own: a series told well by a small GRU")
def wave_gru() -> Program:
    """A GRU of the waves; the noise in them keeps the loss from zero."""
    return supervised(
        lambda: Reader(nn.GRU(1, 24, batch_first=True), 24, 1),
        waves(),
        F.mse_loss,
        adam(5e-3),
        250,
        metric=r2,
    )


@healthy("lstm", 0.9, source="Jozefowicz et al. 2015: forget bias 1; a plateau, then a fall")
def patient_lstm() -> Program:
    """An LSTM with a forget bias keeps a sign over thirty steps: flat for long, then solved."""

    def build() -> nn.Module:
        cell = nn.LSTM(1, 24, batch_first=True)
        weights(cell)["bias_hh_l0"].data[24:48] = 2.0
        return Reader(cell, 24, 1)

    data = first_sign(30).map(y=lambda y: y.float()[:, None])
    return supervised(build, data, F.binary_cross_entropy_with_logits, adam(1e-2), 300, metric=sign_accuracy)
