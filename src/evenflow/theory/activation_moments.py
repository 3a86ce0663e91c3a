"""What mean-field theory needs of an activation at one pre-activation variance.

For u ~ N(0, q): E φ, E φ², E φ'² and E φ'⁴, and from them the gains and rates
that follow. A *gain* multiplies the standard deviation of weights whose
σ_w² = fan_in · Var(W) is 1; a *rate* is the factor on E‖gradient‖² per layer,
going backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import require_variances
from evenflow.theory.gaussian import expect

_TINY_STD = 1e-9


@dataclass(frozen=True, slots=True)
class Moments:
    """Gaussian moments of an activation φ(u), u ~ N(0, q).

    Attributes:
        activation: Its name.
        q: Variance of the pre-activation.
        mean: E φ.
        mean_square: E φ².
        derivative_mean_square: E φ'².
        derivative_mean_fourth: E φ'⁴.
    """

    activation: str
    q: float
    mean: float
    mean_square: float
    derivative_mean_square: float
    derivative_mean_fourth: float

    @property
    def variance(self) -> float:
        """Var φ = E φ² − (E φ)²."""
        return self.mean_square - self.mean**2

    @property
    def gain(self) -> float:
        """(E φ²)^−½: keeps the mean square of the activations at 1."""
        return _inverse_root(self.mean_square)

    @property
    def centred_gain(self) -> float:
        """(Var φ)^−½: brings the variance of the activations to 1."""
        return _inverse_root(self.variance)

    @property
    def backward_gain(self) -> float:
        """(E φ'²)^−½: makes χ₁ = 1, so that gradients keep their size at this q."""
        return _inverse_root(self.derivative_mean_square)

    @property
    def rms_norm_rate(self) -> float:
        """Rate per layer with RMSNorm and no bias, q E φ'²/E φ² (see ``norm_rate``)."""
        return self.q * self.derivative_mean_square / self.mean_square if self.mean_square else math.inf

    @property
    def batch_norm_rate(self) -> float:
        """Rate per layer with BatchNorm at a large batch, q E φ'²/Var φ (see ``norm_rate``)."""
        return self.q * self.derivative_mean_square / self.variance if self.variance > 0 else math.inf

    @property
    def derivative_spread(self) -> float:
        """E φ'⁴/(E φ'²)², 1 for a line and 2 for ReLU: how unequally units pass gradients on."""
        square = self.derivative_mean_square
        return self.derivative_mean_fourth / square**2 if square else math.inf


def moments(activation: ActivationLike, q: float = 1.0) -> Moments:
    """The moments of an activation at pre-activation variance q ≥ 0.

    Raises:
        TheoryError: The activation is not known, or q is negative or not finite.
    """
    phi = as_activation(activation)
    require_variances(q=q)
    std, slope_std, kinks = math.sqrt(q), slope_scale(q), phi.breakpoints
    return Moments(
        activation=phi.name,
        q=q,
        mean=expect(phi.f, std, breakpoints=kinks),
        mean_square=expect(lambda u: phi(u) ** 2, std, breakpoints=kinks),
        derivative_mean_square=expect(lambda u: phi.derivative(u) ** 2, slope_std, breakpoints=kinks),
        derivative_mean_fourth=expect(lambda u: phi.derivative(u) ** 4, slope_std, breakpoints=kinks),
    )


def slope_scale(q: float) -> float:
    """√q, but never 0: φ' may jump at 0, and the limit q → 0 sees both sides."""
    return max(math.sqrt(q), _TINY_STD)


def _inverse_root(x: float) -> float:
    return 1.0 / math.sqrt(x) if x > 0.0 else math.inf
