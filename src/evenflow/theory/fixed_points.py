"""Where signals settle in a deep plain net: the fixed points q* and c*, and how fast.

Layer after layer q approaches q* and the correlation of two inputs approaches
c*. At c = 1 the correlation map has slope χ₁: for χ₁ ≤ 1 all inputs become alike
(ordered phase, c* = 1); for χ₁ > 1 they part, to c* < 1 (chaotic phase). How
deep a net can be trained follows from how long c takes to forget.

References:
    B. Poole et al. 2016 (fixed points, phases); S. Schoenholz et al. 2017 (depth
    scales, trainability).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize

from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.maps import c_map, chi, depth_scale, q_map

LARGEST_Q = 1e12
"""Beyond this q counts as growing without bound."""
SMALLEST_Q = 1e-12
"""Below this q counts as 0."""
TRAINABLE_SCALES = 6.0
"""A net trains up to about 6 ξ_c layers (Schoenholz et al. 2017, the line over their training maps)."""

_STEP = 10**0.125
_FIXED = 1e-12
_CLOSEST_C = 1.0 - 1e-7
"""A c* beyond this counts as 1: the map's distance from the diagonal sinks into rounding there."""


def q_star(
    activation: ActivationLike, sigma_w2: float, sigma_b2: float = 0.0, *, start: float = 1.0
) -> float:
    """The fixed point q* = σ_w² E φ(√q* z)² + σ_b² that the q map heads for.

    Args:
        activation: φ.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        start: q of the first layer. The result is the nearest fixed point in
            the direction in which the map moves it; ``start`` itself where that
            is fixed, as any q is for ReLU at σ_w² = 2.

    Returns:
        q*; 0 where signals die out, ``inf`` where they grow without bound.

    Raises:
        TheoryError: A variance is negative or not finite, or start is 0.
    """
    phi = as_activation(activation)
    require_variances(start=start, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if start == 0.0:
        raise TheoryError("q_star starts from a q above 0, got start = 0")

    def excess(q: float) -> float:
        return q_map(phi, q, sigma_w2, sigma_b2) / q - 1.0

    if abs(excess(start)) <= _FIXED:
        return start
    upwards = excess(start) > 0
    here = start
    while SMALLEST_Q < here < LARGEST_Q:
        last, here = here, here * _STEP if upwards else here / _STEP
        if (excess(here) > 0) != upwards:
            return float(optimize.brentq(excess, last, here, xtol=1e-300, rtol=1e-14))
    return math.inf if upwards else 0.0


def c_star(
    activation: ActivationLike, sigma_w2: float, sigma_b2: float = 0.0, *, start: float = 1.0
) -> float:
    """The stable fixed point of the correlation map at q*, between 0 and 1.

    It is 1 in the ordered phase (χ₁ ≤ 1). Otherwise the map, convex and
    increasing on 0 … 1 with a slope above 1 at 1, has exactly one more.

    Args:
        activation: φ.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        start: q of the first layer, as in :func:`q_star`.

    Raises:
        TheoryError: q grows without bound.
    """
    phi = as_activation(activation)
    q = q_star(phi, sigma_w2, sigma_b2, start=start)
    if math.isinf(q):
        raise TheoryError(
            f"{phi.name} with sigma_w2 = {sigma_w2:g}, sigma_b2 = {sigma_b2:g}: q grows without bound, there "
            "is no fixed point of the correlation. Take a smaller sigma_w2."
        )
    if chi(phi, q, sigma_w2) <= 1.0 + _FIXED:
        return 1.0

    def excess(c: float) -> float:
        return c_map(phi, c, q, sigma_w2, sigma_b2) - c

    if excess(_CLOSEST_C) >= 0.0:
        return 1.0
    return float(optimize.brentq(excess, 0.0, _CLOSEST_C, xtol=1e-13))


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Where a deep plain net settles.

    Attributes:
        activation: Name of φ.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        q: q*, the pre-activation variance.
        c: c*, the correlation that any two inputs end with.
        chi_1: χ₁ at q*, rate of E‖gradient‖².
        chi_c: χ at q* and c*, slope of the correlation map at its fixed point.
    """

    activation: str
    sigma_w2: float
    sigma_b2: float
    q: float
    c: float
    chi_1: float
    chi_c: float

    @property
    def gradient_depth_scale(self) -> float:
        """ξ_∇ = 1/|ln χ₁| layers."""
        return depth_scale(self.chi_1)

    @property
    def correlation_depth_scale(self) -> float:
        """ξ_c = 1/|ln χ_c*| layers."""
        return depth_scale(self.chi_c)

    @property
    def trainable_depth(self) -> float:
        """About the largest depth, in layers, at which a plain net still trains: 6 ξ_c."""
        return TRAINABLE_SCALES * self.correlation_depth_scale


def fixed_point(
    activation: ActivationLike, sigma_w2: float, sigma_b2: float = 0.0, *, start: float = 1.0
) -> FixedPoint:
    """q*, c*, rates and depth scales of a deep plain net.

    Arguments as in :func:`q_star`.

    Raises:
        TheoryError: q grows without bound, so that there is no fixed point.
    """
    phi = as_activation(activation)
    c = c_star(phi, sigma_w2, sigma_b2, start=start)
    q = q_star(phi, sigma_w2, sigma_b2, start=start)
    return FixedPoint(
        activation=phi.name,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        q=q,
        c=c,
        chi_1=chi(phi, q, sigma_w2),
        chi_c=chi(phi, q, sigma_w2, c),
    )


def trainable_depth(activation: ActivationLike, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """About the largest depth, in layers, at which a plain net still trains: 6 ξ_c.

    ξ_c is the depth scale of the correlation; below c* = 1 it is that of the
    gradient too. A rule of thumb from MNIST and CIFAR-10 with tanh (Schoenholz
    et al. 2017), for nets without skips and normalisation.
    """
    return fixed_point(activation, sigma_w2, sigma_b2).trainable_depth
