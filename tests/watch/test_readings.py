"""What was read once is not read again, unless it has changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evenflow.watch import Watch, finite, readings, watch
from evenflow.watch.readings import Readings
from evenflow.watch.recorder import Direction, Witness
from tests.watch.programs import mlp


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that are read to see whether they are finite."""
    found: list[Tensor] = []

    def bad(tensor: Tensor) -> finite.Flag:
        found.append(tensor)
        return finite.bad(tensor)

    monkeypatch.setattr(readings, "bad", bad)
    return found


def test_the_two_latest_tensors_are_known(reads: list[Tensor]) -> None:
    known = Readings()
    x, y, z = torch.ones(3), torch.full((3,), math.nan), torch.zeros(3)
    known.note(x, False)
    assert known.bad(y) is True
    assert known.bad(x) is False
    assert known.bad(y) is True
    assert len(reads) == 1
    known.note(z, False)
    known.bad(x)
    assert len(reads) == 2


def test_what_changed_is_read_again(reads: list[Tensor]) -> None:
    known = Readings()
    x = torch.ones(3)
    known.note(x, False)
    x[0] = math.inf
    assert known.bad(x) is True
    assert len(reads) == 1


def test_nothing_is_remembered_of_a_tensor_that_nobody_waited_for(reads: list[Tensor]) -> None:
    known = Readings()
    x = torch.ones(3)
    known.note(x, None)
    assert known.bad(x) is False
    assert len(reads) == 1


def test_gradients_are_known_until_they_change_or_the_step_ends() -> None:
    known = Readings()
    fine, broken, changed = torch.ones(3), torch.full((3,), math.nan), torch.ones(3)
    for gradient, flag in ((fine, False), (broken, True), (changed, False)):
        known.note_gradient(gradient, flag)
    changed.mul_(2.0)
    assert [known.finite_gradient(one) for one in (fine, broken, changed)] == [True, False, False]
    known.clear()
    assert not known.finite_gradient(fine)


def test_sentinels_read_only_what_the_figures_have_not(reads: list[Tensor]) -> None:
    program = mlp()
    with watch(program.models, program.optimizers, budget=None) as run:
        program.step()
        reads.clear()
        program.step()
    assert run.trouble is None
    assert [list(one.shape) for one in reads] == [[9, 6]]  # the batch


class Between(nn.Module):
    """What ``between`` makes of the output of one layer enters a second one."""

    def __init__(self, between: Callable[[Tensor], Tensor], second: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(3, 4), between, second

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(self.between(x)) + x.sum()


def train(model: nn.Module, steps: int) -> Watch:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with watch(model, optimizer, budget=None) as run:
        for _ in range(steps):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert run.trouble is None
    return run


@pytest.mark.parametrize(("second", "read"), [(nn.Linear(4, 5), False), (nn.Tanh(), True)])
def test_the_input_of_a_layer_that_hides_nothing_is_not_read(
    reads: list[Tensor], second: nn.Module, read: bool
) -> None:
    train(Between(lambda x: 2.0 * x, second), 1)
    assert any(one.requires_grad for one in reads) is read  # the batch and gradients do not


def overflow(x: Tensor) -> Tensor:
    return x + torch.full_like(x, math.inf)


@pytest.mark.parametrize("second", [nn.Linear(4, 5), nn.LayerNorm(4), nn.Tanh()])
def test_bad_numbers_that_enter_a_layer_are_not_held_against_it(second: nn.Module) -> None:
    flight = train(Between(overflow, second), 1).flights
    if isinstance(second, nn.Tanh):  # in which infinity drowns
        assert not flight
        return
    culprit = flight[0].culprit
    assert culprit is not None
    assert (culprit.direction, culprit.module, culprit.witness) == (Direction.FORWARD, "", Witness.IN_SITU)


@pytest.mark.parametrize(("bad_at", "module"), [("caller", ""), ("layer", "second")])
def test_who_sent_a_bad_gradient_is_known_in_later_steps_too(bad_at: str, module: str) -> None:
    """Where the layer's end in autograd's graph is found as it was found in the first step."""
    step = itertools.count()

    class Late(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            entered = 2.0 * x
            made = self.second(entered)
            if next(step) == 2:
                if bad_at == "caller":
                    made = made + Spoiled.apply(entered).sum()
                else:
                    assert made.grad_fn is not None
                    made.grad_fn.register_prehook(lambda sent: (sent[0] * math.inf,))
            return made

    culprit = train(Late(nn.Identity(), nn.Tanh()), 3).flights[0].culprit
    assert culprit is not None
    assert (culprit.direction, culprit.module) == (Direction.BACKWARD, module)


class Spoiled(torch.autograd.Function):
    """Identity whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


def test_who_asks_for_a_gradient_later_is_told_by_the_same_hook() -> None:
    known, told = Readings(), list[tuple[str, float]]()
    x = torch.ones(1, requires_grad=True) * 3.0
    known.expect_gradient(x, lambda gradient: told.append(("first", gradient.item())))
    known.on_gradient(x, lambda gradient: told.append(("second", gradient.item())))
    assert len(x._backward_hooks or {}) == 1
    (2.0 * x).backward()
    assert told == [("first", 2.0), ("second", 2.0)]


def test_what_a_tensor_was_before_it_changed_in_place_has_another_gradient() -> None:
    known, told = Readings(), list[tuple[str, float]]()
    x = torch.ones(1, requires_grad=True) * 3.0
    known.expect_gradient(x, lambda gradient: told.append(("before", gradient.item())))
    x.mul_(5.0)
    known.on_gradient(x, lambda gradient: told.append(("after", gradient.item())))
    (2.0 * x).backward()
    assert told == [("after", 2.0), ("before", 10.0)]
