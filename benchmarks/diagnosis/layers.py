"""The layers of the corpus as PyTorch modules, with Keras' initialisers where the program came from Keras.

Sequences are [batch, time, features].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from benchmarks.diagnosis.data import UnbuildableError
from torch import Tensor, nn
from torch.nn import functional as F

_KERAS_TRUNCATION = 0.87962566103423978
"""Standard deviation of a unit normal cut at ±2; Keras divides by it."""


def initialise(weight: Tensor, spec: str | None) -> None:
    """Fill ``weight`` in place by the corpus' name of an initialiser."""
    if spec in (None, "pytorch_default"):
        return
    fan_in = nn.init._calculate_fan_in_and_fan_out(weight)[0] if weight.dim() > 1 else 0

    def truncated(variance: float) -> None:
        std = math.sqrt(variance) / _KERAS_TRUNCATION
        nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)

    named: dict[str, Callable[[], object]] = {
        "zeros": lambda: nn.init.zeros_(weight),
        "glorot_uniform": lambda: nn.init.xavier_uniform_(weight),
        "he_uniform": lambda: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
        "he_normal": lambda: truncated(2.0 / fan_in),
        "lecun_normal": lambda: truncated(1.0 / fan_in),
    }
    if spec in named:
        named[spec]()
        return
    match = re.fullmatch(r"(\w+)\(([-\d.e, ]+)\)", spec or "")
    if match is None:
        raise UnbuildableError(f"unknown initialiser {spec!r}")
    kind, numbers = match.group(1), [float(v) for v in match.group(2).split(",")]
    if kind == "normal":
        nn.init.normal_(weight, mean=numbers[0], std=numbers[1])
    elif kind == "trunc_normal":
        mean, std = numbers
        nn.init.trunc_normal_(weight, mean, std, mean - 2 * std, mean + 2 * std)
    elif kind == "uniform":
        nn.init.uniform_(weight, a=numbers[0], b=numbers[1])
    elif kind == "constant":
        nn.init.constant_(weight, numbers[0])
    else:
        raise UnbuildableError(f"unknown initialiser {spec!r}")


class Reshape(nn.Module):
    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class LastStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class GlobalAvgPool2d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class PolynomialFeatures(nn.Module):
    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x**d for d in range(1, self.degree + 1)], dim=-1)


class Detached(nn.Module):
    """A part that is evaluated without recording a graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.inner(x)
        return out


class Residual(nn.Module):
    """after(shortcut(x) + body(x)); a shortcut that grows takes every other pixel and pads channels."""

    def __init__(self, body: nn.Module, after: nn.Module, grow: tuple[int, int] | None) -> None:
        super().__init__()
        self.body, self.after, self.grow = body, after, grow

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if self.grow is not None:
            extra = self.grow[1] - self.grow[0]
            skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))
        out: Tensor = self.after(skip + self.body(x))
        return out


class GraphConv(nn.Module):
    """A X Wᵀ with a fixed normalised adjacency A."""

    def __init__(self, n_in: int, n_out: int, adjacency: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        return self.adjacency @ (x @ self.weight.t())


class LearnedPosition(nn.Module):
    def __init__(self, max_len: int, dim: int, init: str | None) -> None:
        super().__init__()
        self.table = nn.Embedding(max_len, dim)
        initialise(self.table.weight, init)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.weight[: x.shape[1]]


class SinusoidalPosition(nn.Module):
    def __init__(self, max_len: int, dim: int) -> None:
        super().__init__()
        pos = torch.arange(max_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        table = torch.zeros(max_len, dim)
        table[:, 0::2], table[:, 1::2] = torch.sin(pos * rate), torch.cos(pos * rate)
        self.table: Tensor
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


class PatchEmbed(nn.Module):
    """A ViT's beginning: patches, a class token, learned positions from N(0, 0.02)."""

    def __init__(self, in_channels: int, image: int, patch: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, dim, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.position


class EncoderLayer(nn.TransformerEncoderLayer):
    """PyTorch's own block, with a causal mask if ``causal``."""

    causal = False

    def forward(self, src: Tensor, *args: object, **kwargs: object) -> Tensor:
        length = src.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf")), 1) if self.causal else None
        return super().forward(src, src_mask=mask, is_causal=self.causal)


def initialise_block(block: nn.Module, spec: str | None, n_blocks: int) -> None:
    """One initialiser for a whole transformer block; biases become zero."""
    if spec in (None, "pytorch_default"):
        return
    assert spec is not None
    base, *scaled = spec.split(", residual projections")
    for name, p in block.named_parameters():
        if "norm" in name:
            continue
        if p.dim() > 1:
            initialise(p, base)
            if scaled and name in ("self_attn.out_proj.weight", "linear2.weight"):
                with torch.no_grad():
                    p.div_(math.sqrt(2 * n_blocks))
        else:
            nn.init.zeros_(p)
