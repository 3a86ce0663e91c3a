"""Where on the critical line a net should start, so that gradients keep their size over its depth.

χ₁ = 1 keeps the mean of E‖gradient‖². With orthogonal weights the squared singular
values of the end-to-end Jacobian still spread, with variance

    σ²_JJᵀ = L (μ₂/μ₁² − 1),      μ_k = E φ'(√q z)^2k,

which falls with q for smooth activations. So q is chosen for σ²_JJᵀ = 1, and 1 at
most. Rectifiers have the same spread at every q; theirs is 1. GELU and its like have
critical points that q slowly leaves; they are used while a small error of log q grows
less than e-fold over the depth, K^L < e.

References:
    J. Pennington, S. Schoenholz & S. Ganguli, "Resurrecting the sigmoid in deep
    learning through dynamical isometry: theory and practice", NeurIPS 2017, eq. 17 and 22.
"""

from __future__ import annotations

import math

from scipy import optimize

from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.shaped import Shaped
from evenflow.theory import Activation, CriticalPoint, TheoryError, critical_point, expect

SPREAD = 1.0
"""Wanted σ²_JJᵀ: of the order of one, however deep (Pennington et al. 2017, section 2.5)."""
_SMALLEST = 1e-8
"""q below this loses the signal in float32's rounding of biases and sums."""
_SAME = 1e-9
"""Two spreads that differ by less are the same: the activation is a rectifier, and q is free."""


def critical_gains(phi: Activation | Shaped, layers: int, q: float | None = None) -> CriticalPoint:
    """The point of the critical line to start from.

    Args:
        phi: The activation; a shaped one is critical at σ_w² = 1, σ_b² = 0 by its making.
        layers: L.
        q: Wanted pre-activation variance; None: as above.

    Raises:
        PatchError: The activation has no stable critical point there.
    """
    if isinstance(phi, Shaped):
        return CriticalPoint("shaped", 1.0, 0.0, 1.0, 1.0)
    try:
        point = critical_point(phi, chosen_q(phi, layers) if q is None else q)
    except TheoryError as error:
        raise PatchError(f"reinitialise by critical: {error}") from error
    if q is None and point.sensitivity**layers > math.e:
        raise PatchError(
            f"reinitialise by critical does not fit {phi.name}: at its critical point the size of "
            f"activations is not stable (K = {point.sensitivity:.4g} "
            f"at q = {point.q:.3g}, over {layers} layers). "
            'Expected an activation such as relu or tanh; use ShapeActivation("tat"), or a norm.'
        )
    return point


def chosen_q(phi: Activation, layers: int) -> float:
    """The largest q ≤ 1 at which the Jacobian's spread over the depth is at most :data:`SPREAD`."""
    if abs(spread(phi, 1.0) - spread(phi, _SMALLEST)) < _SAME or layers * spread(phi, 1.0) <= SPREAD:
        return 1.0
    if layers * spread(phi, _SMALLEST) >= SPREAD:
        return _SMALLEST
    root = optimize.brentq(lambda x: layers * spread(phi, math.exp(x)) - SPREAD, math.log(_SMALLEST), 0.0)
    return math.exp(float(root))


def spread(phi: Activation, q: float) -> float:
    """μ₂/μ₁² − 1: what one layer adds to the variance of the Jacobian's squared singular values."""
    std = math.sqrt(q)
    mean = expect(lambda u: phi.derivative(u) ** 2, std, breakpoints=phi.breakpoints)
    square = expect(lambda u: phi.derivative(u) ** 4, std, breakpoints=phi.breakpoints)
    return square / mean**2 - 1.0
