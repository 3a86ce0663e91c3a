"""UseLogits on losses written by hand, and loss edits in a step of the program's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow import Program
from evenflow.surgery import Autocast, Edit, LossScale, Patch, PatchError, SetLoss, UseLogits
from tests.surgery.nets import executed

SOURCE = torch.Generator().manual_seed(0)
X = 3 * torch.randn(8, 5, generator=SOURCE, dtype=torch.float64)
HARD = X * torch.tensor([[100.0], [-100.0]] * 4, dtype=torch.float64)
CLASSES = torch.randint(5, (8,), generator=SOURCE)
ONE_HOT = F.one_hot(CLASSES, 5).double()
EPS = 1e-7


def keras_binary(x: Tensor) -> Tensor:
    p = x.sigmoid().clamp(EPS, 1 - EPS)
    return -(ONE_HOT * torch.log(p) + (1 - ONE_HOT) * torch.log(1 - p)).mean()


def added_guard(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return -(ONE_HOT * (p + EPS).log() + (1.0 - ONE_HOT) * (1.0 - p + EPS).log()).mean()


def keras_categorical(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    p = p / p.sum(-1, keepdim=True)
    return -(ONE_HOT * torch.clip(p, EPS, 1 - EPS).log()).sum(-1).mean()


def picked(x: Tensor) -> Tensor:
    p = F.softmax(x, dim=1)
    return -torch.log(p[torch.arange(8), CLASSES].clamp_min(EPS)).mean()


def gathered(x: Tensor) -> Tensor:
    return -x.softmax(1).gather(1, CLASSES[:, None]).squeeze(1).log().mean()


def with_xlogy(x: Tensor) -> Tensor:
    return -torch.xlogy(ONE_HOT, x.softmax(1)).sum(1).mean()


def binary(x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, ONE_HOT)


def categorical(x: Tensor) -> Tensor:
    return F.cross_entropy(x, CLASSES)


def _on_logits(loss: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, its gradient) with the edit made."""
    better = Patch(UseLogits()).loss(lambda model, batch: loss(model(batch)))
    x = inputs.clone().requires_grad_()
    value = better(lambda batch: batch, x)
    (slope,) = torch.autograd.grad(value, x)
    return value.detach(), slope


@pytest.mark.parametrize("inputs", [X, HARD], ids=["soft", "saturated"])
@pytest.mark.parametrize(
    ("by_hand", "oracle"),
    [
        (keras_binary, binary),
        (added_guard, binary),
        (keras_categorical, categorical),
        (picked, categorical),
        (gathered, categorical),
        (with_xlogy, categorical),
    ],
    ids=lambda value: value.__name__,
)
def test_logarithms_are_computed_from_logits(
    by_hand: Callable[[Tensor], Tensor], oracle: Callable[[Tensor], Tensor], inputs: Tensor
) -> None:
    x = inputs.clone().requires_grad_()
    expected = oracle(x)
    (slope,) = torch.autograd.grad(expected, x)
    value, found = _on_logits(by_hand, inputs)
    assert torch.allclose(value, expected.detach(), rtol=1e-12)
    assert torch.allclose(found, slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: -x.sigmoid().clamp(0.2, 0.8).log().mean(),
        lambda x: -(x.sigmoid() + 0.5).log().mean(),
        lambda x: -(2 - x.sigmoid()).log().mean(),
        lambda x: -(x.softmax(1) / x.softmax(1).sum(0, keepdim=True)).log().mean(),
        lambda x: x.softmax(1).square().mean(),
        lambda x: -(x.sigmoid() * 0.5).log().mean(),
    ],
)
def test_what_is_no_logarithm_of_a_probability_is_left_alone(loss: Callable[[Tensor], Tensor]) -> None:
    x = X.clone().requires_grad_()
    expected = loss(x)
    (slope,) = torch.autograd.grad(expected, x)
    value, found = _on_logits(loss, X)
    assert torch.equal(value, expected.detach())
    assert torch.equal(found, slope)


def test_the_printed_code_does_the_same() -> None:
    better = executed(Patch(UseLogits()).code(nn.Linear(1, 1))).edit_loss(lambda model, x: keras_binary(x))
    assert torch.allclose(better(None, HARD), binary(HARD), rtol=1e-12)


# --- a step of the program's own ---


def _program(step: Any, last: nn.Module | None = None) -> Program:
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    return Program(
        build=lambda seed: nn.Sequential(nn.Linear(5, 5), *([last] if last is not None else [])),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.5),
        batches=lambda seed: [(inputs, inputs.argmax(1))],
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        steps=6,
        step=step,
    )


def _step(model: Any, optimizer: Any, batch: Any) -> dict[str, Tensor]:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach()}


def _by_hand(model: Any, optimizer: Any, batch: Any) -> dict[str, Tensor]:
    optimizer.zero_grad()
    loss = -model(batch[0]).log_softmax(1)[torch.arange(16), batch[1]].mean()
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach()}


def _losses(program: Program) -> list[float]:
    return [float(figures["loss"]) for figures in program.start(0).run()]


@pytest.mark.parametrize("edit", [UseLogits(), SetLoss("cross_entropy")], ids=lambda edit: edit.name)
def test_a_step_of_its_own_has_its_losses_changed(edit: Edit) -> None:
    ill = _program(_step, nn.Softmax(1))
    better = _losses(Patch(edit).program(ill))
    assert better == _losses(_program(_step))
    assert better != _losses(ill)


def test_a_scaled_loss_in_a_step_is_the_same_training() -> None:
    assert _losses(Patch(LossScale(256.0)).program(_program(_step))) == _losses(_program(_step))


def test_autocast_in_a_step() -> None:
    cast, plain = _losses(Patch(Autocast()).program(_program(_step))), _losses(_program(_step))
    assert cast != plain
    assert cast == pytest.approx(plain, rel=0.05)


def test_a_step_without_a_loss_function_is_told() -> None:
    patched = Patch(SetLoss("cross_entropy")).program(_program(_by_hand))
    with pytest.raises(PatchError, match="set_loss does not fit this step: it calls none of PyTorch's loss"):
        _losses(patched)
