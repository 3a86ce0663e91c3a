"""Faulty twins of the kinds that the rules had missed, in several architectures; all of the open half.

Each was tried with the seed that it has, and its metric is far below what its control reaches.
Deep plain nets at too high a rate, tiny steps in short runs and under squared errors,
recurrences that amplify or forget, backbones frozen before they were ever trained,
faults that bring others about, of which the first is to be named first, and language models
at a rate that needs clipping, without it. Nets that learn by long detours reach what their
control reaches; what is wrong with them is their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benchmarks.diagnosis import faults
from benchmarks.diagnosis.controls import recipes
from benchmarks.diagnosis.controls.dense import changed, net
from benchmarks.diagnosis.controls.images import lenet
from benchmarks.diagnosis.controls.numbers import net as numbers_net
from benchmarks.diagnosis.controls.sequences import rnn
from benchmarks.diagnosis.recipe import Pair, Recipe, adam, bits, mapped, sgd, task
from benchmarks.diagnosis.subject import Subject
from benchmarks.diagnosis.twins import STUCK, twin
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks import DeepNet, PlainCNN
from evenflow.lab.tasks import Adding

_RATE = "learning_rate_too_high depth_without_skip"
_SLOW = "learning_rate_too_low"
_TIME = "long_recurrence recurrent_gain_too_large"
_WILD = f"{STUCK} oscillating exploding_gradient non_finite dead_units vanishing_gradient saturation"


def twins_in_kind() -> list[Subject]:
    """All of them."""
    base = recipes()
    made = [
        *_rates(base),
        *_recurrences(base),
        *_frozen(base),
        *_chains(base),
        *_detours(base),
        *_languages(base),
    ]
    return [replace(one, split="open", confirmed=(), seeds=(0,)) for one in made]


def _circles(size: int, generator: torch.Generator) -> Pair:
    """Two noisy rings, and which of them as 0 or 1."""
    which = torch.randint(2, (size,), generator=generator)
    angle = 2 * torch.pi * torch.rand(size, generator=generator)
    radius = 0.5 + 0.5 * which + 0.1 * torch.randn(size, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), which.float()[:, None]


def _rings(depth: int, act: Any = "relu") -> Callable[[], nn.Module]:
    """A net of two inputs that ends in a probability."""

    def build() -> nn.Module:
        return nn.Sequential(
            DeepNet(inputs=2, width=32, depth=depth, outputs=1, act=act, init="glorot"), nn.Sigmoid()
        )

    return build


def _hits(output: Tensor, target: Tensor) -> float:
    return bits(output - 0.5, target)


def _squares_of_classes(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.softmax(-1), F.one_hot(target, output.shape[-1]).float())


def _rates(base: dict[str, Recipe]) -> list[Subject]:
    digits, images, numbers = base["relu-adam"], base["lenet-sgd"], base["regression-adam"]
    rings: dict[str, Any] = {"data": _circles, "metric": _hits, "loss": F.binary_cross_entropy, "batch": 32}
    squares = {**rings, "loss": F.mse_loss, "batch": 16}
    he = net(12, init="he")
    return [
        twin(digits, "deep-adam-rate", _WILD, _RATE, 0.5, build=he, optimizer=adam(0.1), steps=100),
        twin(digits, "deep-sgd-rate", _WILD, _RATE, 0.5, build=he, optimizer=sgd(0.3, 0.9)),
        twin(
            digits, "deep-tanh-rate", _WILD, _RATE, 0.5, build=net(12, "tanh", "glorot"),
            optimizer=sgd(1.0, 0.9),
        ),
        twin(
            digits, "rings-sgd-rate", _WILD, _RATE, 0.8, build=_rings(10), optimizer=sgd(0.5, 0.9), steps=400,
            **rings,
        ),
        twin(
            digits, "rings-tanh-rate", _WILD, _RATE, 0.8, build=_rings(10, "tanh"), optimizer=adam(0.03),
            steps=400, **rings,
        ),
        twin(images, "slow-sgd-short", STUCK, _SLOW, 0.5, optimizer=sgd(1e-3), steps=30),
        twin(images, "slow-adam-short", STUCK, _SLOW, 0.5, optimizer=adam(1e-6), steps=30),
        twin(numbers, "slow-sgd", STUCK, _SLOW, 0.3, optimizer=sgd(1e-4), steps=100),
        twin(
            digits, "slow-squares", STUCK, f"{_SLOW} wrong_loss_or_output", 0.5, optimizer=sgd(1e-2),
            loss=_squares_of_classes, batch=32,
        ),
        twin(
            digits, "slow-rings-squares", STUCK, f"{_SLOW} wrong_loss_or_output", 0.7, build=_rings(3),
            optimizer=sgd(1e-3), steps=200, **squares,
        ),
    ]  # fmt: skip


def _recurrences(base: dict[str, Recipe]) -> list[Subject]:
    adding, pixels = base["lstm-adding"], base["gru-pixels-64"]

    def cell(**more: Any) -> Any:
        return rnn("rnn", inputs=2, outputs=1, hidden=32, **more)

    def time(recipe: Recipe, fault: str, causes: str = _TIME, ceiling: float = 0.3, **more: Any) -> Subject:
        return twin(recipe, fault, _WILD, causes, ceiling, clip=None, **more)

    rectified: dict[str, Any] = {"nonlinearity": "relu"}
    return [
        time(
            adding, "tanh-gain-2", build=cell(recurrent_init="normal", gain=2.0), optimizer=sgd(0.01),
            steps=60, data=task(Adding(100)),
        ),
        time(
            adding, "tanh-rate", f"{_TIME} learning_rate_too_high", build=cell(), optimizer=adam(0.05),
            steps=80, data=task(Adding(100)),
        ),
        time(
            adding, "relu-gain-1.05", build=cell(recurrent_init="identity", gain=1.05, **rectified),
            optimizer=sgd(0.01), steps=80, data=task(Adding(100)),
        ),
        time(
            adding, "relu-gain-1.6", build=cell(recurrent_init="normal", gain=1.6, **rectified),
            optimizer=sgd(1e-3), steps=40, data=task(Adding(60)),
        ),
        time(
            pixels, "plain-rate", f"{_TIME} learning_rate_too_high", build=rnn("rnn", inputs=1, hidden=32),
            optimizer=sgd(1.0), steps=80,
        ),
        time(pixels, "plain", build=rnn("rnn", inputs=1, hidden=32), optimizer=sgd(0.01), steps=80),
    ]  # fmt: skip


def _frozen(base: dict[str, Recipe]) -> list[Subject]:
    images = base["lenet-sgd"]

    def frozen(build: Callable[[], nn.Module], head: str) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model = build().requires_grad_(False)
            model.get_submodule(head).requires_grad_(True)
            return model

        return make

    def plain() -> nn.Module:
        return PlainCNN(depth=6, outputs=4)

    def head_alone(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.get_submodule("9").parameters(), 0.05)

    cause = "frozen_or_detached"
    return [
        twin(images, "backbone-frozen", STUCK, cause, 0.6, build=frozen(lenet, "9")),
        twin(images, "deep-backbone-frozen", STUCK, cause, 0.6, build=frozen(plain, "head"), steps=60),
        twin(images, "backbone-not-in-optimizer", STUCK, cause, 0.6, optimizer=head_alone, steps=100),
    ]


def _chains(base: dict[str, Recipe]) -> list[Subject]:
    digits, numbers = base["relu-adam"], base["regression-adam"]
    he, rate = net(12, init="he"), "learning_rate_too_high"
    return [
        twin(
            digits, "deep-inputs-100", _WILD, f"unscaled_input {rate}", 0.5, build=he, optimizer=sgd(0.01),
            data=mapped(digits.data, lambda x: 100 * x),
        ),
        twin(digits, "deep-rate-2", _WILD, rate, 0.5, build=he, optimizer=sgd(2.0)),
        twin(
            numbers, "targets-30", _WILD, f"unscaled_target {rate} dead_relu", 0.3, optimizer=sgd(0.1),
            data=mapped(numbers.data, targets=lambda y: 30 * y),
        ),
        twin(
            numbers, "deep-targets-1000", _WILD, f"unscaled_target {rate}", 0.3,
            build=numbers_net(depth=12), optimizer=sgd(0.01),
            data=mapped(numbers.data, targets=lambda y: 1000 * y),
        ),
        twin(
            digits, "deep-small-init", _WILD, "init_too_small", 0.5,
            build=changed(net(8), faults.normal(0.01)), optimizer=sgd(0.1),
        ),
        twin(
            digits, "tanh-rate-5", _WILD, f"saturating_activation {rate}", 0.5,
            build=net(5, "tanh", "glorot"), optimizer=sgd(5.0),
        ),
    ]  # fmt: skip


def _detours(base: dict[str, Recipe]) -> list[Subject]:
    digits = base["relu-adam"]

    def swinging(fault: str, **more: Any) -> Subject:
        return twin(digits, fault, "oscillating", _RATE, 1.1, **more)

    rings: dict[str, Any] = {"data": _circles, "metric": _hits, "loss": F.binary_cross_entropy, "batch": 32}
    return [
        swinging("swings-8", build=net(8, init="he"), optimizer=sgd(0.3)),
        swinging("swings-12", build=net(12, init="he"), optimizer=sgd(0.15)),
        swinging("swings-12-momentum", build=net(12, init="he"), optimizer=sgd(0.05, 0.9)),
        swinging("swings-rings", build=_rings(8), optimizer=sgd(0.3), **rings),
        swinging("swings-rings-tanh", build=_rings(8, "tanh"), optimizer=sgd(0.3), **rings),
    ]


def _languages(base: dict[str, Recipe]) -> list[Subject]:
    clipped, causes = base["lstm-lr20-clip"], "learning_rate_too_high recurrent_gain_too_large"
    return [
        twin(clipped, "unclipped", _WILD, causes, 0.45, clip=None),
        twin(clipped, "unclipped-rate-40", _WILD, causes, 0.45, clip=None, optimizer=sgd(40.0)),
    ]
