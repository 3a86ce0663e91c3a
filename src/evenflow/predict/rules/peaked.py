"""The softmax of widely spread scores: how much likelier two rows agree on a key than not.

Two rows of n Gaussian scores s, t of variance ``full`` whose entries at equal keys
have covariance ``shared`` give p = softmax(s), q = softmax(t), and

    R = (n − 1) A / (1 − A),   A = E Σ_k p_k q_k.

R = e^shared while the spread is small. Beyond, the largest score wins, and A is
found from simulated rows: at fixed angles θ, t = cos θ · s + sin θ · w, in which A is
smooth, and at fixed steps of log ``full``; values between are interpolated. The
same random numbers serve all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from evenflow.predict.axes import Array

SMALL_SPREAD = 0.3
"""Up to this variance the closed form is within 1 % (16 keys: 2 %) of simulated rows (test_peaked.py)."""
MOST_KEYS = 512
"""R no longer depends on n beyond this, as far as simulation tells."""
_ANGLES = 16
_STEPS = 4
"""Nodes over θ, and per doubling of the variance: interpolation stays below the noise of simulation."""
_DRAWS = 240_000


def effective_ratio(n: int, full: float, shared: Array) -> Array:
    """R for rows of ``n`` scores of variance ``full``, for each covariance ``shared``."""
    if full <= SMALL_SPREAD:
        return np.asarray(np.exp(shared))
    x = _STEPS * math.log2(full / SMALL_SPREAD)
    step = math.floor(x)
    u = x - step
    cubic = (
        -u * (u - 1) * (u - 2) / 6,
        (u + 1) * (u - 1) * (u - 2) / 2,
        -(u + 1) * u * (u - 2) / 2,
        (u + 1) * u * (u - 1) / 6,
    )
    n = max(2, min(n, MOST_KEYS))
    logs = sum(w * _simulated(n, step + k - 1) for k, w in enumerate(cubic))
    angle = np.arccos(np.clip(shared / full, -1.0, 1.0))
    return np.asarray(np.exp(_between(angle) @ logs))


def _between(angle: Array) -> Array:
    """Weights on the nodes for the values at some angles [..., _ANGLES]: barycentric interpolation."""
    away = angle[..., None] - _nodes()
    on_node = np.abs(away) < 1e-12
    weight = (-1.0) ** np.arange(_ANGLES)
    weight[[0, -1]] /= 2
    weights = np.where(on_node.any(-1, keepdims=True), on_node, weight / np.where(on_node, 1.0, away))
    normalised: Array = weights / weights.sum(-1, keepdims=True)
    return normalised


def _nodes() -> Array:
    """Chebyshev points on [0, π]."""
    nodes: Array = math.pi / 2 * (1 - np.cos(math.pi * np.arange(_ANGLES) / (_ANGLES - 1)))
    return nodes


@lru_cache(maxsize=512)
def _simulated(n: int, step: int) -> Array:
    """Ln R at the nodes of θ, for the variance SMALL_SPREAD · 2^(step/_STEPS)."""
    std = math.sqrt(SMALL_SPREAD * 2 ** (step / _STEPS))
    s, w = np.random.default_rng(0).standard_normal((2, max(16, _DRAWS // n), n), dtype=np.float32)
    p = _softmax(std * s)
    agree = [
        np.vdot(p, _softmax(std * (math.cos(angle) * s + math.sin(angle) * w))) / len(s) for angle in _nodes()
    ]
    a = np.minimum(np.array(agree, dtype=float), 1 - 1e-9)
    logs: Array = np.log(a * (n - 1) / (1 - a))
    return logs


def _softmax(scores: np.ndarray) -> np.ndarray:
    p = np.exp(scores - scores.max(1, keepdims=True))
    result: np.ndarray = p / p.sum(1, keepdims=True)
    return result
