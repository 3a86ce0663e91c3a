"""The copy of the weights: what an optimizer changed, whoever wrote to the weights before and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evenflow.watch import moments
from evenflow.watch.copies import Copies
from evenflow.watch.moments import Moments, Page


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on compiled code and on PyTorch, which is its reference."""
    if request.param == "torch":
        monkeypatch.setattr(moments, "streams", lambda: None)
    else:
        assert moments.streams() is not None, "the development environment has numba"


def weights(*, plain: bool) -> list[Tensor]:
    """Tensors of several sizes, and unless ``plain`` of several formats and layouts."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(size, generator=generator) for size in (70_000, 3, 4096, 0, 1, 5000)]
    others = [torch.randn(6, 8, generator=generator).t(), torch.ones(5, dtype=torch.float64)]
    return found if plain else found + others


def rows(tensors: list[Tensor]) -> list[Moments]:
    """The moments of each."""
    page = Page(len(tensors))
    page.put_all(0, tensors)
    return [Moments(*row) for row in page.read(len(tensors)).tolist()]


def step(copies: Copies, now: list[Tensor], move: Callable[[list[Tensor]], None]) -> None:
    """Look before a step and after it, and check both."""
    count = len(now)
    page = Page(2 * count)
    before = [one.clone() for one in now]
    copies.take(page, now)
    assert all(torch.equal(one, other) for one, other in zip(before, now, strict=True)), "it is only read"
    move(now)
    moved = [one.clone() for one in now]
    copies.put_changes(page, count, range(count), now)
    assert all(torch.equal(one, other) for one, other in zip(moved, now, strict=True)), "it is only read"
    found = [Moments(*row) for row in page.read(2 * count).tolist()]
    assert found[:count] == rows(before)
    assert found[count:] == rows([old - new for old, new in zip(before, moved, strict=True)])


def descend(tensors: list[Tensor]) -> None:
    """What an optimizer does."""
    for one in tensors:
        one.sub_(1e-3 * torch.sin(one))


@pytest.mark.parametrize("plain", [True, False])
def test_step_after_step(plain: bool) -> None:
    copies, now = Copies(), weights(plain=plain)
    for _ in range(3):
        step(copies, now, descend)


@pytest.mark.parametrize("plain", [True, False])
def test_what_others_write_between_steps_is_no_part_of_the_update(plain: bool) -> None:
    copies, now = Copies(), weights(plain=plain)
    step(copies, now, descend)
    versions = [one._version for one in now]
    for one in now:
        one.data.clamp_(-0.5, 0.5)  # a WGAN's way, which autograd does not count
    assert [one._version for one in now] == versions
    step(copies, now, descend)
    now[0].data[-1] = torch.nextafter(now[0][-1], torch.tensor(9.0))  # the least that can change
    step(copies, now, descend)
    now[0].data[[1, 4097]] = now[0].data[[4097, 1]]  # sums of all kinds are as before
    step(copies, now, descend)
    for one in now:
        one.data.neg_()  # one bit of each entry
    step(copies, now, descend)


def test_parameters_come_go_and_change_places() -> None:
    copies, now = Copies(), weights(plain=True)
    step(copies, now, descend)
    step(copies, now[::-1], descend)
    step(copies, now[1:3], descend)
    step(copies, now, descend)
    step(copies, [], descend)


def test_only_some_have_moved() -> None:
    copies, now = Copies(), weights(plain=True)
    page = Page(2 * len(now))
    before = now[4].clone(), now[0].clone()
    copies.take(page, now)
    descend(now)
    copies.put_changes(page, len(now), [4, 0], [now[4], now[0]])
    found = [Moments(*row) for row in page.read(len(now) + 2)[-2:].tolist()]
    assert found == rows([before[0] - now[4], before[1] - now[0]])
    step(copies, now, descend)


def test_what_is_not_finite_is_counted() -> None:
    copies, now = Copies(), weights(plain=True)
    page = Page(2 * len(now))
    copies.take(page, now)
    now[0][7] = float("nan")
    copies.put_changes(page, len(now), range(len(now)), now)
    assert page.read(len(now) + 1)[-1, 4] == 1
    assert page.read(len(now) + 1)[0, 4] == 0


def test_another_size_inside_a_step_is_refused(request: pytest.FixtureRequest) -> None:
    copies, page = Copies(), Page(2)
    copies.take(page, [torch.ones(10_000)])
    with pytest.raises((ValueError, RuntimeError)):
        copies.put_changes(page, 1, [0], [torch.ones(3)])
