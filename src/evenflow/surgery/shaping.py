"""Constants that shape an activation so that deep plain nets keep signals apart and gradients alive.

A shaped activation is φ̂(x) = γ (φ(αx + β) + δ). With weights of σ_w² = 1, no biases
and inputs of mean square 1, it keeps q = 1 in every layer; C is its correlation map.

* DKS: Q(1) = 1, Q'(1) = 1, C(0) = 0, C'(1) = ζ^(1/L), with ζ = 1.5.
* TAT for smooth φ: Q(1) = 1, Q'(1) = 1, C'(1) = 1, C''(1) = τ/L, with τ = 0.3.
* TAT for leaky ReLU: the slope a for which C, composed L times, takes 0 to η = 0.9.

With z ~ N(0, 1): Q(1) = E φ̂², Q'(1) = E[φ̂ φ̂' z], C(0) = (E φ̂)², C'(1) = E φ̂'²,
C''(1) = E φ̂''². L is the number of activations in a chain.

References:
    J. Martens et al., "Rapid training of deep neural networks without skip
    connections or normalization layers using Deep Kernel Shaping", 2021 (DKS, ζ).
    G. Zhang, A. Botev & J. Martens, "Deep learning without shortcuts: shaping the
    kernel with tailored rectifiers", ICLR 2022 (TAT; τ, η and eq. 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from scipy import optimize

from evenflow.surgery.errors import PatchError
from evenflow.theory import Activation, expect
from evenflow.theory.gaussian import Array
from evenflow.theory.numerical import derivative

Function: TypeAlias = Callable[[Array], Any]

ZETA = 1.5
"""DKS: largest slope of the net's correlation map at 1 (Martens et al. 2021, section 9)."""
TAU = 0.3
"""TAT, smooth: curvature of the net's correlation map at 1 (Zhang et al. 2022, section 4.2)."""
ETA = 0.9
"""TAT, leaky ReLU: where the net's correlation map takes 0 (Zhang et al. 2022, section 4.1)."""
_FAR = 10.0
"""A kink beyond this is not met: P(|z| > 10) = 2e-23. Softplus has one at 20 of its own making."""
_ENOUGH = 2
"""Solutions to choose from; the one with the least γ amplifies rounding least."""
_STARTS = [(alpha, beta) for beta in (0.5, 1.0, -0.5, 0.1, -1.0, 2.0) for alpha in (0.1, 0.3, 1.0, 0.03)]
"""(α, β) from which the solver sets out."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Constants of φ̂(x) = gamma · (phi(alpha x + beta) + delta)."""

    alpha: float
    beta: float
    gamma: float
    delta: float


@cache
def tailored_slope(layers: int, eta: float = ETA) -> float:
    """Negative slope a of TAT's leaky ReLU for a chain of L activations.

    Its output is multiplied with √(2/(1 + a²)). L = 20 gives .18138, 1000 .84435.
    """

    def missing(a: float) -> float:
        c = 0.0
        for _ in range(layers):
            c = leaky_c_map(c, a)
        return c - eta

    if missing(0.0) <= 0.0:
        return 0.0
    return float(optimize.brentq(missing, 0.0, 1.0 - 1e-12, xtol=1e-14))


def leaky_c_map(c: float, a: float) -> float:
    """C(c) of leaky ReLU with slope a, normalised (Zhang et al. 2022, eq. 9)."""
    c = min(1.0, c)
    arc = (math.sqrt(1.0 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    return ((1.0 - a) ** 2 * arc + 2.0 * a * c) / (1.0 + a * a)


def deep_kernel_shape(phi: Activation, layers: int, zeta: float = ZETA) -> Shape:
    """DKS' constants for φ in a chain of L activations.

    Raises:
        PatchError: There are none.
    """
    target = zeta ** (1.0 / layers)

    def shape(alpha: float, beta: float) -> Shape:
        mean = _mean(phi, phi, alpha, beta)
        variance = _mean(phi, lambda u: (phi(u) - mean) ** 2, alpha, beta)
        return Shape(alpha, beta, 1.0 / math.sqrt(variance), -mean)

    def residual(x: Array) -> list[float]:
        one = shape(math.exp(x[0]), x[1])
        return [(_slope_mean_square(phi, one) - target) * layers, (_q_slope(phi, one) - 1.0) * layers]

    return _solved(phi, "DKS", shape, residual)


def tailored_shape(phi: Activation, layers: int, tau: float = TAU) -> Shape:
    """TAT's constants for a smooth φ in a chain of L activations.

    Raises:
        PatchError: There are none, as for activations with a kink.
    """
    if any(abs(kink) < _FAR for kink in phi.breakpoints):
        raise PatchError(
            f"shape_activation does not fit: TAT wants a smooth activation, and {phi.name} has a kink. "
            'Take to="leaky_relu", for which TAT has a form of its own, or method="dks".'
        )
    second: Function = derivative(phi.derivative, ())

    def shape(alpha: float, beta: float) -> Shape:
        gamma = 1.0 / (alpha * math.sqrt(_mean(phi, lambda u: phi.derivative(u) ** 2, alpha, beta)))

        def with_z(f: Function) -> float:
            return _mean(phi, lambda u: f(u) * (u - beta) / alpha, alpha, beta)

        delta = (1.0 / (gamma**2 * alpha) - with_z(lambda u: phi(u) * phi.derivative(u))) / with_z(
            phi.derivative
        )
        return Shape(alpha, beta, gamma, delta)

    def residual(x: Array) -> list[float]:
        one = shape(math.exp(x[0]), x[1])
        square = _mean(phi, lambda u: (phi(u) + one.delta) ** 2, one.alpha, one.beta) * one.gamma**2
        bend = _mean(phi, lambda u: second(u) ** 2, one.alpha, one.beta) * one.gamma**2 * one.alpha**4
        return [(square - 1.0) * layers, bend * layers / tau - 1.0]

    return _solved(phi, "TAT", shape, residual)


def _mean(phi: Activation, f: Function, alpha: float, beta: float) -> float:
    """E f(αz + β)."""
    kinks = tuple((kink - beta) for kink in phi.breakpoints)
    return expect(lambda u: np.asarray(f(u + beta), dtype=np.float64), alpha, breakpoints=kinks)


def _slope_mean_square(phi: Activation, shape: Shape) -> float:
    mean_square = _mean(phi, lambda u: phi.derivative(u) ** 2, shape.alpha, shape.beta)
    return mean_square * (shape.gamma * shape.alpha) ** 2


def _q_slope(phi: Activation, shape: Shape) -> float:
    alpha, beta = shape.alpha, shape.beta
    product = _mean(
        phi, lambda u: (phi(u) + shape.delta) * phi.derivative(u) * (u - beta) / alpha, alpha, beta
    )
    return product * shape.gamma**2 * alpha


def _solved(
    phi: Activation,
    method: str,
    shape: Callable[[float, float], Shape],
    residual: Callable[[Array], list[float]],
) -> Shape:
    """The shape at which the residual is 0; of several, the one of least γ."""
    solutions: list[Shape] = []
    for alpha, beta in _STARTS:
        try:
            with np.errstate(all="ignore"):
                found = optimize.root(
                    residual, [math.log(alpha), beta], method="hybr", options={"xtol": 1e-12}
                )
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
        if np.max(np.abs(found.fun)) < 1e-6 and abs(found.x[1]) < 20.0:
            solutions.append(shape(math.exp(found.x[0]), float(found.x[1])))
        if len(solutions) == _ENOUGH:
            break
    if solutions:
        return min(solutions, key=lambda one: one.gamma)
    raise PatchError(
        f"shape_activation does not fit {phi.name}: {method} has no constants for it. "
        "Expected a smooth activation such as tanh or silu, or a leaky rectifier with TAT."
    )
