"""The softmax of widely spread scores: how much likelier two rows agree on a key than not.

Two rows of n Gaussian scores s, t of variance ``full`` whose entries at equal keys
have covariance ``shared`` give p = softmax(s), q = softmax(t), and

    R = (n − 1) A / (1 − A),   A = E Σ_k p_k q_k.

The cotangent of s is J g, J = diag(p) − p pᵀ. For g with independent entries two
rows' cotangents have the covariance E tr(J J') = E Σ_k p_k q_k (1 − p_k − q_k + Σ_l p_l q_l),
which we give as

    U = E tr(J J') / (A (1 − 1/n)),

1 where the scores are equal and near 0 where one key takes all: such a softmax is
saturated and lets no gradient through.

R = e^shared and U = e^−(2 full + shared)/n (to first order) while the spread is
small. Beyond, the largest score wins, and both are found from simulated rows: at
fixed angles θ, t = cos θ · s + sin θ · w, in which they are smooth, at fixed steps of
log ``full``, and for numbers of keys that are powers of two; values between are
interpolated. The same random numbers serve all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, reduce

import numpy as np

from evenflow.predict.axes import Array

SMALL_SPREAD = 0.3
"""Up to this variance the closed forms are within 1 % (16 keys: 2 %) of simulated rows (test_peaked.py)."""
MOST_KEYS = 512
"""R no longer depends on n beyond this, as far as simulation tells."""
LEAST = 1e-2
"""R (and U, squared) below this count as this: such rows hardly ever meet, and too few simulated ones do."""
_ANGLES = 10
_STEPS = 4
"""Nodes over each half of θ, and per doubling of the variance: finer ones drown in simulation's noise."""
_DRAWS, _ROWS = 240_000, 30_000
"""Scores drawn, and rows at most."""
_RIGHT = math.pi / 2


def effective_ratio(n: int, full: float, shared: Array) -> Array:
    """R for rows of ``n`` scores of variance ``full``, for each covariance ``shared``."""
    if full <= SMALL_SPREAD:
        return np.asarray(np.exp(shared))
    return np.asarray(np.exp(_interpolated(n, full, shared)[0]))


def unsaturated(n: int, full: float, shared: Array) -> Array:
    """U for such rows."""
    if full <= SMALL_SPREAD:
        return np.asarray(np.exp(-(2 * full + shared) / max(n, 1)))
    return np.asarray(np.exp(_interpolated(n, full, shared)[1]))


def by_count(
    function: Callable[[int, float, Array], Array], counts: Array, full: float, shared: Array
) -> Array:
    """R or U of rows with different numbers of keys, which count as the nearest power of two."""
    different = np.unique(counts)
    if full <= SMALL_SPREAD or len(different) == 1:
        return function(round(float(counts.mean())), full, shared)
    powers = np.exp2(np.round(np.log2(np.maximum(counts, 1))))
    shared, powers = np.broadcast_arrays(shared, powers)
    result = np.zeros(shared.shape)
    for power in np.unique(powers):
        at = powers == power
        result[at] = function(int(power), full, shared[at])
    return result


@lru_cache(maxsize=512)
def log_sum(n: int, variance: float) -> float:
    """E ln Σ e^s of n independent Gaussian scores: near ln n + variance/2, then near their maximum.

    −ln Σ e^s moved by a Gumbel variable is the least of n exponential ones, so that

        E ln Σ e^s = ∫ (e^−e^−u − φ(u)^n) du,   φ(u) = E exp(−e^(s − u)).
    """
    std = math.sqrt(max(variance, 0.0))
    z = np.linspace(-8.5, 8.5, 401)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    u = np.linspace(-40.0 - 9 * std, 40.0 + 9 * std + math.log(n), 4001)
    with np.errstate(over="ignore"):
        phi = np.exp(-np.exp(np.minimum(std * z[:, None] - u, 700.0))).T @ weights
        mine = np.exp(-np.exp(-u))
    return float(np.trapezoid(mine - phi**n, u))


def _interpolated(n: int, full: float, shared: Array) -> tuple[Array, Array]:
    """Ln R and ln U between the simulated ones."""
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
    angle = np.arccos(np.clip(shared / full, -1.0, 1.0))
    found = np.zeros((2, *angle.shape))
    for start, here in ((0.0, angle <= _RIGHT), (_RIGHT, angle > _RIGHT)):
        if here.any():
            logs = sum(w * _simulated(n, step + k - 1, start) for k, w in enumerate(cubic))
            found[:, here] = np.asarray(logs) @ _between(angle[here] - start).T
    return found[0], found[1]


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
    """Chebyshev points on [0, π/2]."""
    nodes: Array = _RIGHT / 2 * (1 - np.cos(math.pi * np.arange(_ANGLES) / (_ANGLES - 1)))
    return nodes


@lru_cache(maxsize=512)
def _simulated(n: int, step: int, start: float) -> Array:
    """Ln R and ln U [2, _ANGLES] at nodes from θ = start, for the variance SMALL_SPREAD · 2^(step/_STEPS)."""
    std = math.sqrt(SMALL_SPREAD * 2 ** (step / _STEPS))
    s, w = _draws(n)
    p, q = _softmax(std * s), _softmax(std * w)
    # Independent rows, of which the answer is known, tell how far these draws are off.
    unlike = _overlaps(p, q)
    alone = 1 - (_overlaps(p, p)[0].mean() + _overlaps(q, q)[0].mean()) / 2
    excess = unlike - np.array([[1 / n], [alone**2 / (n - 1)]])
    found = []
    for angle in start + _nodes():
        like = _overlaps(p, _softmax(std * (math.cos(angle) * s + math.sin(angle) * w)))
        slope = ((like - like.mean(1, keepdims=True)) * unlike).mean(1) / unlike.var(1)
        found.append(like.mean(1) - slope * excess.mean(1))
    a, trace = np.array(found).T
    a = np.clip(a, LEAST / n, 1 - 1e-9)
    ratio = np.maximum(a * (n - 1) / (1 - a), LEAST)
    logs: Array = np.log(np.stack([ratio, np.maximum(trace / (a * (1 - 1 / n)), LEAST**2)]))
    return logs


@lru_cache(maxsize=1)
def _draws(n: int) -> np.ndarray:
    """Two independent sets of rows of n scores."""
    shape = 2, min(max(16, _DRAWS // n), _ROWS), n
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _overlaps(p: np.ndarray, q: np.ndarray) -> Array:
    """Σ p q and tr(J J') of each pair of rows [2, rows]."""
    both = p * q
    agree = both.sum(1)
    return np.stack([agree, agree - (both * (p + q)).sum(1) + agree**2]).astype(float)


def _softmax(scores: np.ndarray) -> np.ndarray:
    # NumPy finds the maxima of short rows one by one; by columns it is faster.
    largest = reduce(np.maximum, scores.T) if scores.shape[1] < 64 else scores.max(1)
    p = np.exp(scores - largest[:, None])
    p /= p.sum(1, keepdims=True)
    return np.asarray(p)
