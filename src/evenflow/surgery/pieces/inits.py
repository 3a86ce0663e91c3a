"""Initialisers that PyTorch does not have. They fill a tensor in place, under ``torch.no_grad()``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def part_of(weight: Tensor, part: int, parts: int) -> Tensor:
    """One of several equal parts of a weight or bias, cut along its rows; a view."""
    return weight.detach().chunk(parts)[part]


def scale_(tensor: Tensor, factor: float) -> Tensor:
    """Multiply by a number."""
    return tensor.mul_(factor)


def delta_orthogonal_(kernel: Tensor, gain: float = 1.0) -> Tensor:
    """Centre tap orthogonal, all others 0: a convolution that keeps norms, whatever its padding.

    Args:
        kernel: (out, in, *kernel).
        gain: Length of the rows (or columns).

    References:
        L. Xiao et al., "Dynamical isometry and a mean field theory of CNNs",
        ICML 2018, algorithm 1.
    """
    kernel.zero_()
    centre = kernel
    for size in reversed(kernel.shape[2:]):
        centre = centre[..., size // 2]
    nn.init.orthogonal_(centre, gain)
    return kernel


def by_gates_(weight: Tensor, init: Any, **settings: Any) -> Tensor:
    """Fill a recurrent weight (gates · hidden, hidden) gate by gate."""
    for gate in weight.detach().split(weight.shape[1]):
        init(gate, **settings)
    return weight


def identity_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """The identity times a gain."""
    nn.init.eye_(weight)
    return weight.mul_(gain)


def gate_bias_(bias: Tensor, gates: int, gate: int, value: float) -> Tensor:
    """Set one gate's part of a recurrent bias."""
    return bias.detach().chunk(gates)[gate].fill_(value)


def chrono_(bias: Tensor, gates: int, longest: int) -> Tensor:
    """Chrono init: gates that remember for 1 to ``longest`` steps.

    Args:
        bias: Of an LSTM (4 gates: i, f, g, o) or a GRU (3 gates: r, z, n).
        gates: Which of the two.
        longest: T; forget biases are ln U(1, T − 1), input biases their negative.

    References:
        C. Tallec & Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, eq. 16.
    """
    parts = bias.detach().chunk(gates)
    memory = torch.empty_like(parts[1]).uniform_(1.0, longest - 1.0).log_()
    parts[1].copy_(memory)
    if gates == 4:
        parts[0].copy_(-memory)
    return bias


def lsuv_(model: Any, inputs: Any, paths: list[str], tolerance: float = 0.05, rounds: int = 10) -> None:
    """Layer-sequential unit variance: orthonormal weights, scaled until each layer's output has variance 1.

    Args:
        model: Changed in place; called once per layer and round, in training mode as it is.
        inputs: What it is called with: a tensor, a tuple or a dict.
        paths: Of the layers, in the order in which they run.
        tolerance: Largest |variance − 1| that is left.
        rounds: Most measurements per layer.

    References:
        D. Mishkin & J. Matas, "All you need is a good init", ICLR 2016, algorithm 1.
    """
    seen: dict[str, float] = {}
    kept = {name: value.clone() for name, value in model.named_buffers()}
    for path in paths:
        layer = model.get_submodule(path)
        nn.init.orthogonal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for path in paths:
        layer = model.get_submodule(path)

        def look(module: nn.Module, args: Any, output: Tensor, path: str = path) -> None:
            seen[path] = output.float().var().item()

        handle = layer.register_forward_hook(look)
        try:
            for _ in range(rounds):
                if isinstance(inputs, dict):
                    model(**inputs)
                elif isinstance(inputs, tuple):
                    model(*inputs)
                else:
                    model(inputs)
                variance = seen.get(path, math.nan)
                if not 0.0 < variance < math.inf:
                    raise ValueError(f"the output of {path} has the variance {variance}")
                if abs(variance - 1.0) < tolerance:
                    break
                layer.weight.div_(math.sqrt(variance))
        finally:
            handle.remove()
    for name, value in model.named_buffers():
        value.copy_(kept[name])
