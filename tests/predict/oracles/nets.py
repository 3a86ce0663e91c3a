"""The nets that both neural-tangents and predict are asked about, as lists of layers.

Every pair of input vectors has the same covariance: two samples, and in images all
pixels of both, are vectors of mean square 1 whose pairs have covariance ``rho``. A
kernel over them is two numbers, one for x = x' and one for x ≠ x'; a pair table that
takes samples and pixels as exchangeable says the same, so that nothing is averaged
away and both sides must agree to the accuracy of their integrals.

Layers: (dense, σ_w, σ_b) · (conv, σ_w, σ_b, side, stride), no padding · (average, side) ·
(norm,) over features · (residual, layers) · (gate, layers, layers), a product ·
(flatten,) · (global average,) · (name of a function,).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Layer: TypeAlias = tuple[Any, ...]

SIDE, CHANNELS, FEATURES = 6, 96, 64
IMAGES = frozenset({"conv", "average", "flatten", "global average"})
END: Layer = ("dense", 1.0, 0.0)
EPSILON = 1e-12
"""Of a norm; below what a comparison can see."""


def deep(depth: int, function: str, weight: float, bias: float) -> list[Layer]:
    """``depth`` hidden layers."""
    return [("dense", weight, bias), (function,)] * depth + [END]


def blocks(depth: int, *inside: Layer) -> list[Layer]:
    """A stem and ``depth`` residual blocks."""
    return [("dense", 1.0, 0.1), *[("residual", list(inside))] * depth, END]


NETS: dict[str, tuple[float, list[Layer]]] = {
    "erf 3": (0.3, deep(3, "erf", 1.5, 0.1)),
    "erf 20, ordered": (0.3, deep(20, "erf", 1.0, 0.3)),
    "erf 10, chaotic": (0.6, deep(10, "erf", 2.5, 0.05)),
    "relu 5, He": (0.5, deep(5, "relu", math.sqrt(2), 0.0)),
    "relu 10, biases": (-0.2, deep(10, "relu", 1.2, 0.3)),
    "leaky relu 6": (0.0, deep(6, "leaky relu", 1.3, 0.1)),
    "gelu 4": (0.4, deep(4, "gelu", 1.6, 0.2)),
    "sigmoid-like 4": (0.2, deep(4, "sigmoid-like", 2.0, 0.2)),
    "sine 3": (0.5, deep(3, "sine", 1.4, 0.1)),
    "residual relu 6": (0.3, blocks(6, ("relu",), ("dense", 1.0, 0.1))),
    "residual, two layers inside": (
        0.3,
        blocks(4, ("dense", 1.2, 0.1), ("erf",), ("dense", 0.8, 0.0)),
    ),
    "norm after dense 4": (
        0.4,
        [layer for _ in range(4) for layer in (("dense", 1.4, 0.1), ("norm",), ("relu",))] + [END],
    ),
    "residual with norm before 4": (
        0.3,
        blocks(4, ("norm",), ("dense", 1.3, 0.1), ("relu",), ("dense", 1.0, 0.0)),
    ),
    "gate": (
        0.3,
        [
            ("dense", 1.2, 0.1),
            ("gate", [("dense", 1.5, 0.1)], [("dense", 1.5, 0.2), ("sigmoid-like",)]),
            END,
        ],
    ),
    "cnn relu, flatten": (
        0.3,
        [("conv", 1.4, 0.1, 3, 1), ("relu",), ("conv", 1.4, 0.1, 3, 1), ("relu",), ("flatten",), END],
    ),
    "cnn relu, global average": (
        0.3,
        [("conv", 1.4, 0.1, 3, 1), ("relu",), ("conv", 1.4, 0.1, 3, 1), ("relu",), ("global average",), END],
    ),
    "cnn erf, stride, global average": (
        0.2,
        [("conv", 1.5, 0.1, 2, 2), ("erf",), ("conv", 1.5, 0.0, 2, 1), ("erf",), ("global average",), END],
    ),
    "cnn gelu, average pool, flatten": (
        0.4,
        [
            *(("conv", 1.5, 0.1, 3, 1), ("gelu",), ("average", 2)),
            *(("conv", 1.2, 0.1, 2, 1), ("gelu",), ("flatten",), END),
        ],
    ),
    "cnn norm over channels": (
        0.3,
        [("conv", 1.5, 0.1, 3, 1), ("norm",), ("relu",), ("global average",), END],
    ),
}


def of_images(layers: list[Layer]) -> bool:
    """Whether a net takes images."""
    return any(layer[0] in IMAGES for layer in layers)


def inputs(rho: float, layers: list[Layer]) -> npt.NDArray[np.float64]:
    """Two samples [2, FEATURES], or two images [2, SIDE, SIDE, CHANNELS]."""
    n, width = (2 * SIDE * SIDE, CHANNELS) if of_images(layers) else (2, FEATURES)
    values, vectors = np.linalg.eigh((1 - rho) * np.eye(n) + rho)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    x = np.zeros((n, width))
    x[:, :n] = root * math.sqrt(width)
    return x.reshape((2, SIDE, SIDE, CHANNELS) if of_images(layers) else (2, width))
