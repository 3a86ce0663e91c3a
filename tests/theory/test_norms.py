"""Rates with normalisation against closed forms and deep torch nets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from evenflow.theory.errors import TheoryError
from evenflow.theory.norms import Norm, linear_batch_norm_rate, norm_rate


def test_batch_norm_makes_plain_relu_nets_explode() -> None:
    """Yang et al. 2019: π/(π − 1) per layer, whatever the weights."""
    for w in (0.3, 2.0):
        assert norm_rate("relu", "batch_norm", sigma_w2=w) == pytest.approx(
            math.pi / (math.pi - 1), rel=1e-12
        )


@pytest.mark.parametrize("position", ["before", "after"])
def test_one_sample_norms_keep_relu_gradients(position: Any) -> None:
    assert norm_rate("relu", "rms_norm", position=position, sigma_w2=3.0) == pytest.approx(1.0, rel=1e-12)


def test_layer_norm_after_relu_is_as_bad_as_batch_norm() -> None:
    """It centres the features, and so takes away the same mean."""
    assert norm_rate("relu", "layer_norm", position="after") == pytest.approx(
        math.pi / (math.pi - 1), rel=1e-12
    )


def measured_rate(name: str, norm: str, position: str, w: float, b: float, batch: int, width: int) -> float:
    """Rate per layer of ‖gradient‖² over the middle of a deep net of real torch modules."""
    depth, skip = 24, 8
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    f = getattr(torch, name, None) or getattr(torch.nn.functional, name)
    norms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "layer_norm": lambda h: torch.nn.functional.layer_norm(h, (width,), eps=0),
        "rms_norm": lambda h: torch.nn.functional.rms_norm(h, (width,), eps=1e-300),
        "batch_norm": lambda h: torch.nn.functional.batch_norm(h, None, None, training=True, eps=1e-300),
    }
    normalise = norms[norm]
    x.requires_grad_()
    inputs: list[torch.Tensor] = []
    for _ in range(depth):
        inputs.append(x)
        layer = torch.nn.Linear(width, width, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(w / width), generator=generator)
            layer.bias.normal_(0, math.sqrt(b), generator=generator)
        h = layer(x)
        x = f(normalise(h)) if position == "before" else normalise(f(h))
    cotangent = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    squares = [float(gradient.square().sum()) for gradient in torch.autograd.grad(x, inputs, cotangent)]
    return math.exp(math.log(squares[skip] / squares[depth - 4]) / (depth - 4 - skip))


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("position", ["before", "after"])
def test_deep_torch_nets(name: str, norm: Any, position: Any) -> None:
    """Within 6 % per layer: one net of width 256 over 12 layers, and a batch of 128 for BatchNorm."""
    w, b = 1.7, (0.0 if norm == "batch_norm" else 0.3)
    batch = 128 if norm == "batch_norm" else 16
    expected = norm_rate(name, norm, position=position, sigma_w2=w, sigma_b2=b)
    assert measured_rate(name, norm, position, w, b, batch, 256) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("batch", [6, 12])
def test_linear_net_with_a_small_batch(batch: int) -> None:
    """The layers' mean rate within 3 %, width 512."""
    found = measured_rate("clone", "batch_norm", "before", 1.0, 0.0, batch, 512)
    assert found == pytest.approx(linear_batch_norm_rate(batch), rel=0.03)


class TestMistakes:
    def test_names(self) -> None:
        wrong: Any = "group_norm"
        with pytest.raises(
            TheoryError, match="norm is 'layer_norm', 'rms_norm' or 'batch_norm', got 'group_norm'"
        ):
            norm_rate("relu", wrong)
        wrong = "behind"
        with pytest.raises(TheoryError, match="position is 'before' or 'after'"):
            norm_rate("relu", "rms_norm", position=wrong)

    def test_no_closed_form(self) -> None:
        with pytest.raises(TheoryError, match="no closed form for BatchNorm after the activation"):
            norm_rate("relu", "batch_norm", position="after", sigma_b2=0.1)

    def test_no_weights(self) -> None:
        with pytest.raises(TheoryError, match="take sigma_w2 above 0"):
            norm_rate("relu", "rms_norm", sigma_w2=0.0)

    def test_small_batches(self) -> None:
        assert linear_batch_norm_rate(3) == math.inf
        with pytest.raises(TheoryError, match="fewer than 3 samples, got 2"):
            linear_batch_norm_rate(2)
