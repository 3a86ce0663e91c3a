"""Predictions in which repeated layers are looked up are those in which each is worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from evenflow.predict import Described, expressions, predict, reuse


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.branch(x)
        return total


def chain(layers: int, *others: Callable[[], nn.Module], bias: bool = True) -> nn.Module:
    """Linear layers, each followed by some others."""
    parts = [[nn.Linear(128, 128, bias=bias), *(other() for other in others)] for _ in range(layers)]
    return nn.Sequential(*(module for part in parts for module in part))


def residual(layers: int) -> nn.Module:
    """Branches of a norm and two layers."""
    return nn.Sequential(
        *(
            Residual(nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 128)))
            for _ in range(layers)
        )
    )


def encoder() -> nn.Module:
    """Attention, norms, GELU and masks of dropout."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tanh, whose tables settle": (lambda: chain(26, nn.Tanh), (16, 128)),
    "ReLU": (lambda: chain(8, nn.ReLU, bias=False), (16, 128)),
    "residual branches": (lambda: residual(4), (16, 128)),
    "attention": (encoder, (2, 12, 64)),
}


@pytest.fixture
def nothing_is_reused() -> Iterator[None]:
    """No table gets a number."""
    with mock.patch.object(reuse, "MOST", -1):
        yield


def numbers(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> list[tuple[float, ...]]:
    """Mean, mean square and half-width of each row."""
    torch.manual_seed(0)
    rows = predict(build, Described(shape))
    found: list[tuple[float, ...]] = [
        (row.stats.mean, row.stats.mean_square, row.half_width or 0.0) for row in rows if row.stats
    ]
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_same_with_and_without(case: str) -> None:
    """To 1e-9, five decimals below what a prediction can say; half-widths, of float32 numbers, to 1e-6."""
    build, shape = CASES[case]
    reused = numbers(build, shape)
    with mock.patch.object(reuse, "MOST", -1):
        plain = numbers(build, shape)
    assert len(reused) == len(plain)
    for one, other in zip(reused, plain, strict=True):
        assert one[:2] == pytest.approx(other[:2], rel=1e-9, abs=1e-250)
        assert one[2] == pytest.approx(other[2], rel=1e-6)


def evaluations(layers: int) -> int:
    """How often a product of functions is evaluated in a prediction."""
    count, moments = 0, expressions._moments

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return moments(*args)

    with mock.patch.object(expressions, "_moments", counted):
        predict(lambda: chain(layers, nn.Tanh), Described((16, 128)))
    return count


def test_settled_layers_are_not_worked_out_again() -> None:
    """PyTorch's own initialisation makes signals decay, by 1/3 a layer, to what biases bring."""
    assert evaluations(34) == evaluations(30)


def test_every_layer_is_worked_out_if_nothing_is_reused(nothing_is_reused: None) -> None:
    """The count above can tell."""
    assert evaluations(4) - evaluations(2) >= 4
