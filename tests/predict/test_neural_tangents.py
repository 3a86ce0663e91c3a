"""Predictions against neural-tangents, an independent computation of infinitely wide nets.

Its kernels were frozen by ``oracles/generate.py``. With the loss Σ f or f(x₁) − f(x₂),

    loss² = 2 K(x, x) ± 2 K(x, x'),   Σ |gradient|² = 2 Θ(x, x) ± 2 Θ(x, x'),

the sum over parameters ω of the NTK parametrisation, W = σ_w/√n ω: each gradient
counts with the variance of its weights. Widths cost nothing here, so they are large.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.predict.oracles.nets import CHANNELS, EPSILON, FEATURES, NETS, SIDE, inputs, of_images
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.predict import predict

WIDTH = 1 << 16
FROZEN = json.loads((Path(__file__).parent / "oracles" / "neural_tangents.json").read_text())["nets"]


class Function(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        match self.name:
            case "erf":
                return torch.erf(x)
            case "sigmoid-like":
                return 0.5 * torch.erf(0.5 * x) + 0.5
            case "sine":
                return torch.sin(x)
            case "leaky relu":
                return nn.functional.leaky_relu(x, 0.2)
            case "gelu":
                return nn.functional.gelu(x)
        return torch.relu(x)


class Branches(nn.Module):
    """x + f(x), or f(x) · g(x)."""

    def __init__(self, first: nn.Module, second: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.first(x) if self.second is None else self.first(x) * self.second(x)
        return y


class ChannelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return nn.functional.layer_norm(x, x.shape[-1:], eps=EPSILON).movedim(-1, 1)


class Build:
    """Makes the torch module of a list of layers, and keeps the widths as it goes."""

    def __init__(self, layers: list[Any]) -> None:
        self.images = of_images(layers)
        self.width = CHANNELS if self.images else FEATURES
        self.side = SIDE
        self.net = self.serial(layers, last=True)

    def serial(self, layers: list[Any], *, last: bool = False) -> nn.Module:
        return nn.Sequential(
            *[self.layer(*each, end=last and i == len(layers) - 1) for i, each in enumerate(layers)]
        )

    def layer(self, kind: str, *options: Any, end: bool) -> nn.Module:
        match kind:
            case "dense" | "conv":
                weight, bias = options[:2]
                outputs = 1 if end else WIDTH
                inside, self.width = self.width, outputs
                module: nn.Module
                if kind == "dense":
                    module = nn.Linear(inside, outputs)
                else:
                    side, stride = options[2:]
                    self.side = (self.side - side) // stride + 1
                    module = nn.Conv2d(inside, outputs, side, stride)
                    inside *= side**2
                nn.init.normal_(module.weight, 0, weight / math.sqrt(inside))
                nn.init.normal_(module.bias, 0, bias)  # type: ignore[arg-type]
                return module
            case "average":
                self.side //= options[0]
                return nn.AvgPool2d(options[0])
            case "norm":
                return ChannelNorm() if self.images else nn.LayerNorm(self.width, EPSILON, False)
            case "residual":
                return Branches(self.serial(options[0]), None)
            case "gate":
                width = self.width
                first = self.serial(options[0])
                self.width = width
                return Branches(first, self.serial(options[1]))
            case "flatten":
                self.width *= self.side**2
                return nn.Flatten()
            case "global average":
                return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Function(kind)


def weighted(signs: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: (y * signs).sum()


def kernels(rho: float, layers: list[Any]) -> dict[str, list[float]]:
    """K and Θ at x = x' and x ≠ x', from two predictions."""
    x = torch.from_numpy(inputs(rho, layers)).float()
    x = x.movedim(-1, 1) if of_images(layers) else x
    quadratic: dict[str, list[float]] = {"nngp": [], "ntk": []}
    for sign in (1.0, -1.0):
        signs = torch.tensor([[1.0], [sign]])
        flow = predict(lambda: Build(layers).net, x, weighted(signs))
        assert not [note for note in flow.notes if "unknown" in note]
        variances = {r.site.path: r.stats.mean_square for r in flow.select(Role.PARAMETER) if r.stats}
        rows = flow.select(Role.PARAMETER_GRADIENT)
        assert all(row.stats is not None for row in rows)
        quadratic["ntk"].append(
            sum(r.stats.mean_square * r.stats.count * variances[r.site.path] for r in rows if r.stats)
        )
        (loss,) = [row.stats for row in flow.select(Role.ACTIVATION) if row.site.op == "sum"][-1:]
        assert loss is not None
        quadratic["nngp"].append(loss.mean_square)
    return {name: [(p + m) / 4, (p - m) / 4] for name, (p, m) in quadratic.items()}


@pytest.mark.parametrize("name", NETS)
def test_kernels(name: str) -> None:
    found, oracle = kernels(*NETS[name]), FROZEN[name]
    for kind in ("nngp", "ntk"):
        assert found[kind] == pytest.approx(oracle[kind], rel=1e-3), kind


def test_the_frozen_file_holds_every_net() -> None:
    assert list(FROZEN) == list(NETS)
