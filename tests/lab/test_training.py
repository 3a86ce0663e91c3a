"""The training loop against steps done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from evenflow.errors import EvenflowError
from evenflow.lab.networks import DeepNet
from evenflow.lab.seeds import generator, seeded
from evenflow.lab.tasks import Adding, Spirals
from evenflow.lab.training import fresh_loss, optimizer, train


def _net() -> DeepNet:
    with seeded(0):
        return DeepNet(inputs=2, width=16, depth=3, outputs=2, act="tanh")


def test_a_step_of_sgd_is_the_rate_times_the_gradient() -> None:
    net, twin = _net(), _net()
    ((loss, norm),) = train(net, Spirals(), 1, rate=0.3, batch=8, seed=5)
    inputs, targets = Spirals().batch(8, generator(5))
    by_hand = Spirals().loss(twin(inputs), targets)
    by_hand.backward()
    gradients = [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]
    assert loss == pytest.approx(by_hand.item())
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
    for new, old, gradient in zip(net.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old.detach() - 0.3 * gradient)


def test_clipping_bounds_the_step() -> None:
    net, twin = _net(), _net()
    train(net, Spirals(), 1, rate=1.0, clip=0.01, batch=8)
    moved = [
        float((a - b).detach().square().sum())
        for a, b in zip(net.parameters(), twin.parameters(), strict=True)
    ]
    assert math.sqrt(sum(moved)) == pytest.approx(0.01, rel=1e-3)


def test_a_warm_up_raises_the_rate_in_equal_parts() -> None:
    """Four steps of a constant slope: rates ¼, ½, ¾ and 1, and 1 from there on."""

    class Falling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = 1e3 + self.weight.expand(len(x), 1)
            return y

    places = []
    for steps in (1, 2, 3, 4, 5):
        net = Falling()
        train(net, Adding(5), steps, rate=1e-4, warmup=4, batch=4)
        places.append(-float(net.weight.detach()) / (1e-4 * 2e3))  # the slope of (y − t)² is nearly 2000
    assert places == pytest.approx([0.25, 0.75, 1.5, 2.5, 3.5], rel=2e-3)


def test_spirals_are_learned_and_the_same_twice() -> None:
    losses = []
    for _ in range(2):
        net = _net()
        history = train(net, Spirals(turns=0.5), 150, rate=0.03, optimizer_name="adam")
        losses.append(fresh_loss(net, Spirals(turns=0.5)))
    assert losses[0] == losses[1] < 0.25 < math.log(2) * 0.8
    assert len(history) == 150


def test_training_stops_where_there_are_no_numbers() -> None:
    class Hopeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1e30))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.weight * x.sum(dim=(1, 2))[:, None]
            return y

    net = Hopeless()
    history = train(net, Adding(5), 10, rate=0.1)
    assert len(history) == 1
    assert not math.isfinite(history[0][0])
    assert float(net.weight.detach()) == pytest.approx(1e30)  # the last step was not taken
    assert fresh_loss(net, Adding(5)) == math.inf


def test_optimizers_by_name() -> None:
    names: tuple[Any, ...] = ("sgd", "momentum", "adam", "adamw")
    made = [optimizer(name, _net(), 0.1) for name in names]
    assert [type(one).__name__ for one in made] == ["SGD", "SGD", "Adam", "AdamW"]
    assert [one.param_groups[0].get("momentum") for one in made[:2]] == [0, 0.9]
    with pytest.raises(EvenflowError, match=r"no optimizer 'lion' in the lab. It has: sgd, momentum"):
        optimizer("lion", _net(), 0.1)  # type: ignore[arg-type]
