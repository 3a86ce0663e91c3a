"""Faults to put into a healthy program: changes of a model, and losses and optimizers that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.diagnosis.controls.dense import Change
from benchmarks.diagnosis.layers import Detached
from torch import Tensor, nn
from torch.nn import functional as F


def every(kind: type[nn.Module], change: Callable[[Any], object]) -> Change:
    """A change to all modules of a kind."""

    def apply(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, kind):
                change(module)

    return apply


def normal(std: float) -> Change:
    return every(
        nn.Linear, lambda linear: (nn.init.normal_(linear.weight, std=std), nn.init.zeros_(linear.bias))
    )


def zero_all(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.zero_()


def followed_by(build: Callable[[], nn.Module], last: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(build(), last())


def encoder_detached(model: nn.Module) -> None:
    layers = model.get_submodule("layers")
    assert isinstance(layers, nn.Sequential)
    for i in range(3):
        layers[i] = Detached(layers[i])


def forgetful(model: nn.Module) -> None:
    """Forget gates that are shut: −6 in both biases together."""
    bias = model.get_parameter("cell.bias_ih_l0")
    size = len(bias) // 4
    bias[size : 2 * size] = -6.0


def sharp_attention(model: nn.Module) -> None:
    """Queries and keys so large that each token looks at one other, whatever it says."""
    for name, parameter in model.named_parameters():
        if name.endswith(("query.weight", "key.weight")):
            parameter.mul_(30.0)


def one_half_only(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer was given the head alone."""
    *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
    return torch.optim.SGD(head.parameters(), 0.02, 0.9)


def root(output: Tensor, target: Tensor) -> Tensor:
    """The root of an error that can be 0, whose slope is infinite there."""
    return (output - output.detach() + 0 * target).abs().sqrt().mean() + F.mse_loss(output, target)


def log_of_probability(output: Tensor, target: Tensor) -> Tensor:
    """Logarithm of a softmax of large numbers, by hand: log 0."""
    p = (output * 1000).exp()
    p = p / p.sum(-1, keepdim=True)
    return F.nll_loss(p.log(), target)


def low_precision(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 2e-4)
