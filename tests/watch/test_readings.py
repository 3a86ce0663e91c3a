"""What was read once is not read again, unless it has changed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evenflow.watch import finite, readings, watch
from evenflow.watch.readings import Readings
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
