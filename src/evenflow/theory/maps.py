"""The maps that carry variance, correlation and gradient from one layer to the next.

For a wide random layer h' = W φ(h) + b with σ_w² = fan_in · Var(W) and
σ_b² = Var(b), pre-activations are Gaussian with variance q, and two inputs have
pre-activations with correlation c:

    q' = σ_w² E φ(√q z)² + σ_b²                       ``q_map``
    c' = (σ_w² E[φ(u₁) φ(u₂)] + σ_b²)/q'              ``c_map``
    χ  = σ_w² E[φ'(u₁) φ'(u₂)],   χ₁ at c = 1         ``chi``

Going backwards, E‖∂L/∂h‖² = χ₁ E‖∂L/∂h'‖²: gradients vanish with depth where
χ₁ < 1, explode where χ₁ > 1, and flow on the *edge of chaos* χ₁ = 1.

References:
    B. Poole et al., "Exponential expressivity in deep neural networks through
    transient chaos", NeurIPS 2016 (length map, correlation map, χ₁).
    S. Schoenholz et al., "Deep information propagation", ICLR 2017
    (depth scales ξ_c and ξ_∇).
"""

from __future__ import annotations

import math

from evenflow.theory.activation_moments import slope_scale
from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.gaussian import Array, expect, expect_pair


def q_map(activation: ActivationLike, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Pre-activation variance of the next layer, σ_w² E φ(√q z)² + σ_b².

    Args:
        activation: φ.
        q: Pre-activation variance (uncentred mean square over units), ≥ 0.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).

    Raises:
        TheoryError: A variance is negative or not finite.
    """
    phi = as_activation(activation)
    require_variances(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    return sigma_w2 * expect(lambda u: phi(u) ** 2, math.sqrt(q), breakpoints=phi.breakpoints) + sigma_b2


def covariance_map(
    activation: ActivationLike,
    c: float,
    q: float,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    q_other: float | None = None,
) -> float:
    """Covariance of the next layer's pre-activations for two inputs, σ_w² E[φ(u₁) φ(u₂)] + σ_b².

    Args:
        activation: φ.
        c: Correlation of the pre-activations of the two inputs, −1 … 1.
        q: Their variance.
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        q_other: Variance for the second input, if it is another one.
    """
    phi = as_activation(activation)
    q_other = q if q_other is None else q_other
    require_variances(q=q, q_other=q_other, sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    product = expect_pair(
        phi.f,
        phi.f,
        c,
        math.sqrt(q),
        math.sqrt(q_other),
        breakpoints_f=phi.breakpoints,
        breakpoints_g=phi.breakpoints,
    )
    return sigma_w2 * product + sigma_b2


def c_map(
    activation: ActivationLike,
    c: float,
    q: float,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    q_other: float | None = None,
) -> float:
    """Correlation of the next layer's pre-activations for two inputs.

    Arguments as in :func:`covariance_map`; the result is that covariance over
    the root of both next variances, and c = 1 stays 1 where q is the same.

    Raises:
        TheoryError: As :func:`q_map`; or the next variance is 0.
    """
    covariance = covariance_map(activation, c, q, sigma_w2, sigma_b2, q_other=q_other)
    variance = q_map(activation, q, sigma_w2, sigma_b2)
    other = variance if q_other is None else q_map(activation, q_other, sigma_w2, sigma_b2)
    if variance == 0.0 or other == 0.0:
        raise TheoryError(
            f"the next layer is constantly 0 (q = {q:g}, sigma_w2 = {sigma_w2:g}, sigma_b2 = {sigma_b2:g}); "
            "it has no correlation. Take q, and one of sigma_w2 and sigma_b2, above 0."
        )
    return max(-1.0, min(1.0, covariance / math.sqrt(variance * other)))


def chi(activation: ActivationLike, q: float, sigma_w2: float, c: float = 1.0) -> float:
    """χ = σ_w² E[φ'(u₁) φ'(u₂)], the factor on E‖gradient‖² per layer backwards.

    At c = 1 this is χ₁. At c < 1 it is the factor on the inner product of two
    inputs' gradients, and the slope dc'/dc of the correlation map where q' = q.

    Args:
        activation: φ.
        q: Pre-activation variance; 0 is taken as the limit q → 0.
        sigma_w2: fan_in · Var(W).
        c: Correlation of the two inputs' pre-activations.
    """
    phi = as_activation(activation)
    require_variances(q=q, sigma_w2=sigma_w2)
    std = slope_scale(q)
    kinks = phi.breakpoints
    slope = phi.derivative
    return sigma_w2 * expect_pair(slope, slope, c, std, std, breakpoints_f=kinks, breakpoints_g=kinks)


def q_sensitivity(activation: ActivationLike, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """K = dlog q'/dlog q = σ_w² √q E[φ(u) φ'(u) z]/q', with u = √q z.

    Fluctuations of q at finite width grow where K > 1 (q itself is unstable),
    so that mean-field figures cannot be trusted there, and die out where K < 1.
    ReLU and its leaky relatives without a bias have K = 1.

    Raises:
        TheoryError: q is 0, or the next variance is.
    """
    phi = as_activation(activation)
    following = q_map(phi, q, sigma_w2, sigma_b2)
    if q == 0.0 or following == 0.0:
        raise TheoryError(f"K = dlog q'/dlog q needs q and q' above 0, got q = {q:g} and q' = {following:g}")

    def integrand(u: Array) -> Array:
        return phi(u) * phi.derivative(u) * u

    return sigma_w2 * expect(integrand, math.sqrt(q), breakpoints=phi.breakpoints) / following


def depth_scale(rate: float) -> float:
    """ξ = 1/|ln rate|: layers over which a quantity with this rate changes e-fold.

    With rate = χ₁ this is the depth scale of E‖gradient‖², falling for χ₁ < 1
    and growing for χ₁ > 1; with χ at the fixed point c*, that of the
    correlation (Schoenholz et al. 2017). Infinite at rate 1, 0 at rate 0.

    Raises:
        TheoryError: The rate is negative or not finite.
    """
    if not (math.isfinite(rate) and rate >= 0.0):
        raise TheoryError(f"a rate is a finite number ≥ 0, got {rate}")
    if rate == 0.0:
        return 0.0
    return math.inf if rate == 1.0 else 1.0 / abs(math.log(rate))
