"""Activations tailored to a plain net's depth, so that it needs neither skips nor norms.

    φ̂(x) = γ (φ(αx + β) + δ)

A random plain net of L layers makes inputs alike, or unrelated, at a rate that its activation
decides. Tailoring sets that rate by the depth, with orthogonal weights of σ_w² = 1.

* DKS, for smooth φ: E φ̂ = 0, E φ̂² = 1, E φ̂ φ̂' z = 1 and E φ̂'² = 1.5^(1/L), z ~ N(0, 1): the
  mean square stays 1, also to first order, and the gradient's grows to 1.5 over all layers.
* TAT, for leaky ReLU: the slope a for which two unrelated inputs have the correlation .9 after
  L layers, where each layer maps c to

      ((1 − a)² (√(1 − c²) + (π − arccos c) c)/π + 2ac)/(1 + a²).

References:
    J. Martens et al., "Rapid training of deep neural networks without skip connections or
    normalization layers using deep kernel shaping", 2021 (DKS). G. Zhang, A. Botev & J. Martens,
    "Deep learning without shortcuts: shaping the kernel with tailored rectifiers", ICLR 2022,
    section 4 (TAT).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from scipy import optimize
from torch import Tensor, nn

from evenflow.errors import EvenflowError
from evenflow.lab.networks.pieces import activation
from evenflow.theory import TheoryError, expect, get_activation

GROWTH = 1.5
"""By how much DKS lets the gradient's mean square grow over the whole net (Martens et al. 2021)."""
ALIKE = 0.9
"""Correlation that TAT lets two unrelated inputs reach (Zhang et al. 2022)."""


class Tailored(nn.Module):
    """γ (φ(αx + β) + δ).

    Args:
        inner: φ.
        alpha: α.
        beta: β.
        gamma: γ.
        delta: δ.
    """

    def __init__(
        self, inner: nn.Module, alpha: float = 1.0, beta: float = 0.0, gamma: float = 1.0, delta: float = 0.0
    ) -> None:
        super().__init__()
        self.inner = inner
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        y: Tensor = self.gamma * (self.inner(self.alpha * x + self.beta) + self.delta)
        return y


def tailored_leaky_relu(layers: int) -> Tailored:
    """TAT: a leaky ReLU for a plain net with so many activations."""
    slope = leaky_slope(layers)
    return Tailored(nn.LeakyReLU(slope), gamma=math.sqrt(2 / (1 + slope**2)))


def leaky_slope(layers: int) -> float:
    """The slope of TAT's leaky ReLU; 0 where so few plain ReLUs leave inputs less alike than that."""
    if leaky_correlation(0.0, layers) <= ALIKE:
        return 0.0
    return float(optimize.brentq(lambda slope: leaky_correlation(slope, layers) - ALIKE, 0.0, 1.0))


def leaky_correlation(slope: float, layers: int) -> float:
    """Correlation of two unrelated inputs after so many layers with a leaky ReLU."""
    c = 0.0
    for _ in range(layers):
        bent = (math.sqrt(max(0.0, 1 - c * c)) + (math.pi - math.acos(min(1.0, c))) * c) / math.pi
        c = min(1.0, ((1 - slope) ** 2 * bent + 2 * slope * c) / (1 + slope**2))
    return c


def dks(name: str, layers: int) -> Tailored:
    """DKS: a smooth activation for a plain net with so many of them.

    Args:
        name: Of φ, such as ``tanh`` or ``softplus``.
        layers: L.

    Raises:
        EvenflowError: No constants were found.
    """
    phi, growth = get_activation(name), GROWTH ** (1 / layers)

    def shape(log_alpha: float, beta: float) -> tuple[float, float, float, float]:
        """γ, δ, E φ̂ φ̂' z and E φ̂'²."""
        alpha = math.exp(log_alpha)
        mean = expect(lambda z: phi(alpha * z + beta))
        variance = expect(lambda z: (phi(alpha * z + beta) - mean) ** 2)
        slope = expect(
            lambda z: (phi(alpha * z + beta) - mean) * alpha * phi.derivative(alpha * z + beta) * z
        )
        square = alpha**2 * expect(lambda z: phi.derivative(alpha * z + beta) ** 2)
        return variance**-0.5, -mean, slope / variance, square / variance

    def faults(point: Any) -> tuple[float, float]:
        _, _, slope, square = shape(*point)
        return layers * (slope - 1), layers * (square - growth)

    for start in itertools.product((-1.0, -2.0, -3.0, 0.0), (0.5, 1.0, 0.0)):
        try:
            solution = optimize.root(faults, start)
        except (ArithmeticError, TheoryError):  # the search came to where φ is flat, or has kinks
            continue
        if solution.success and max(map(abs, faults(solution.x))) < 1e-6:
            gamma, delta, _, _ = shape(*solution.x)
            log_alpha, beta = map(float, solution.x)
            return Tailored(activation(name), math.exp(log_alpha), beta, gamma, delta)
    raise EvenflowError(
        f"DKS found no constants that tailor {name!r} to {layers} layers. It takes smooth activations, "
        "such as tanh or softplus; for a rectifier take tailored_leaky_relu."
    )
