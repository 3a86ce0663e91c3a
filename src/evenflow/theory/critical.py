"""The edge of chaos: weight and bias variances at which gradients neither vanish nor explode.

χ₁ = 1 at a fixed point of the q map is two equations for (σ_w², σ_b², q). Any q
solves them at once:

    σ_w² = 1/E φ'(√q z)²,      σ_b² = q − E φ(√q z)²/E φ'(√q z)²,

so the critical line is a curve with q as its parameter, and a given σ_w² or σ_b²
is met by one-dimensional search along it. Points with σ_b² < 0 do not exist;
those with K > 1 exist, but q leaves them. ReLU and its relatives have one
critical point, σ_w² = 1/E φ'² and σ_b² = 0, for every q.

References:
    B. Poole et al. 2016 (the line of tanh); J. Pennington et al., "Resurrecting
    the sigmoid in deep learning through dynamical isometry", NeurIPS 2017; S.
    Hayou et al., "On the impact of the activation function on deep neural
    networks training", ICML 2019 (any activation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from scipy import optimize

from evenflow.theory.activation_moments import moments
from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.maps import q_sensitivity

_GRID = [10 ** (k / 4) for k in range(-48, 17)]
"""q from 1e-12 to 1e4, where the search brackets its solutions."""
_VANISHING = 1e-4
"""Relative difference that may be left at the lower end of the search if it is falling to 0."""
_DEAD = 1e-24
"""E φ'² below this is taken for 0; what lies so far out in the Gaussian's tail is not integrated well."""
_NEAR_ZERO = 1e-18
"""q that stands for the limit q → 0."""
_FLAT = 1e-11
"""Relative differences below this are rounding."""


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point of the critical line.

    Attributes:
        activation: Name of φ.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        q: Fixed point of the q map there, where χ₁ = 1.
        sensitivity: K = dlog q'/dlog q. Below 1 the fixed point is stable; for
            ReLU and its relatives, whose every q is fixed, 1.
    """

    activation: str
    sigma_w2: float
    sigma_b2: float
    q: float
    sensitivity: float

    @property
    def stable(self) -> bool:
        """Whether q returns after a small push, or (K = 1) at least does not run away."""
        return self.sensitivity <= 1.0 + _FLAT


def critical_point(activation: ActivationLike, q: float = 1.0) -> CriticalPoint:
    """The point of the critical line at which the pre-activation variance is q.

    Args:
        activation: φ.
        q: Wanted fixed point of the pre-activation variance, > 0.

    Raises:
        TheoryError: There is none at this q, because σ_b² would be negative or
            φ' is 0 almost everywhere.
    """
    phi = as_activation(activation)
    require_variances(q=q)
    if q == 0.0:
        raise TheoryError("the critical line is asked for at a q above 0, got q = 0")
    point = _on_line(phi, q)
    if point is None:
        raise TheoryError(
            f"{phi.name} has no critical point at q = {q:g}: chi_1 = 1 would need a negative sigma_b2. "
            "Its output is too large for its slope; try another q, a centred activation, or a norm."
        )
    return point


def edge_of_chaos(
    activation: ActivationLike, *, sigma_w2: float | None = None, sigma_b2: float | None = None
) -> CriticalPoint:
    """The critical point with a given σ_w², or with a given σ_b².

    Args:
        activation: φ.
        sigma_w2: fan_in · Var(W); the result has the σ_b² that goes with it.
        sigma_b2: Var(b); the result has the σ_w² that goes with it. Give one of
            the two.

    Returns:
        The point; where several have it, the one of smallest q. Look at
        ``stable``: GELU and SiLU have points that q leaves. For ReLU and its
        relatives q is 1; where the point is only reached as q → 0 (tanh with
        σ_b² = 0), q is 0.

    Raises:
        TheoryError: Not exactly one is given, or no critical point has it.
    """
    phi = as_activation(activation)
    if (sigma_w2 is None) == (sigma_b2 is None):
        raise TheoryError("edge_of_chaos takes either sigma_w2 or sigma_b2; give exactly one")
    if sigma_w2 is not None:
        wanted, name = sigma_w2, "sigma_w2"
    else:
        wanted, name = float(sigma_b2 or 0.0), "sigma_b2"
    require_variances(**{name: wanted})
    if sigma_w2 == 0.0:
        raise TheoryError("weights of variance 0 pass no gradient; take sigma_w2 above 0")

    def distance(q: float) -> float:
        weight, bias = _raw(phi, q)
        return weight / wanted - 1.0 if sigma_w2 is not None else (bias - wanted) / q

    points = [point for q in _solutions(distance) if (point := _on_line(phi, q)) is not None]
    if not points:
        raise TheoryError(
            f"{phi.name} has no critical point with {name} = {wanted:g}. critical_point({phi.name!r}, q) "
            "gives the point for a wanted q; a norm or a skip connection does without one."
        )
    return points[0]


def _raw(phi: ActivationLike, q: float) -> tuple[float, float]:
    """(σ_w², σ_b²) on the critical line at q; σ_b² may come out negative."""
    m = moments(phi, q)
    if m.derivative_mean_square < _DEAD:
        return math.inf, -math.inf
    return 1.0 / m.derivative_mean_square, q - m.mean_square / m.derivative_mean_square


def _on_line(phi: ActivationLike, q: float) -> CriticalPoint | None:
    """The critical point at q, where 0 stands for the limit q → 0; None if σ_b² is negative."""
    name = as_activation(phi).name
    at = max(q, _NEAR_ZERO)
    sigma_w2, sigma_b2 = _raw(phi, at)
    if abs(sigma_b2) <= (_FLAT if q > 0.0 else _VANISHING) * at:
        sigma_b2 = 0.0
    if sigma_b2 < 0.0:
        return None
    return CriticalPoint(name, sigma_w2, sigma_b2, q, q_sensitivity(phi, at, sigma_w2, sigma_b2))


def _solutions(distance: Callable[[float], float]) -> list[float]:
    """Every q at which a function of q is 0, ascending, as far as 4 points per decade tell.

    A function that is 0 everywhere gives q = 1; one that falls to 0 as q → 0
    gives 0. Any q at which the function is infinite, or cannot be had because
    rounding eats it, is passed over.

    Raises:
        TheoryError: It cannot be had at any q.
    """

    def value(q: float) -> float:
        try:
            exact = distance(q)
        except TheoryError:
            return math.nan
        return exact if abs(exact) > _FLAT else 0.0

    values = [value(q) for q in _GRID]
    if all(map(math.isnan, values)):
        distance(1.0)
    if not any(values):
        return [1.0]
    # Towards q = 0 smooth activations approach their limit as q, kinked ones as √q.
    vanishing = abs(values[0]) <= _VANISHING and abs(values[0]) <= 0.5 * abs(values[4])
    found = [0.0] if vanishing else []
    for (low, before), (high, after) in pairwise(zip(_GRID, values, strict=True)):
        if math.isfinite(before * after) and before * after < 0.0:
            found.append(float(optimize.brentq(distance, low, high, xtol=1e-300, rtol=1e-14)))
    return found
