"""The gradient to expect in every layer of a plain chain, and how much one run scatters.

A chain is h_l = W_l x_{l−1} + b_l, x_l = φ(h_l) for l = 1 … L, with x_0 the
input, the loss on h_L, and δ_l = ∂loss/∂h_l. Following the variance q_l from the
input's mean square, not from the fixed point,

    E‖δ_l‖² = χ(q_l) E‖δ_{l+1}‖²,      χ = σ_w² E φ'²,

whatever the widths. That is the mean over random nets. One net's ln‖δ_l‖² is
nearly normal around a lower centre, since the mean of a long product is made by
rare large ones:

    ln‖δ_l‖² ~ N(ln E‖δ_l‖² − β/2, β),      β = Σ_k (3 E φ'⁴/(E φ'²)² − 1)/n_k

over the layers k = l … L − 1, n_k the width of layer k (Gaussian weights: 5/n
per ReLU layer, 2/n per linear one). Semi-orthogonal weights with m outputs and
n inputs scatter less: the term is M (3κ + n − 1)/(n + 2) − 1, where
κ = E φ'⁴/(E φ'²)² and M = m(n + 2)/(n(m + 2)) if m > n, else 1 (from
E g⁴ = 3n/(n + 2) for an entry g of a random vector of length √n, and the fourth
moment of its projection from m to n dimensions); as m → ∞ that is the Gaussian one.

References:
    S. Schoenholz et al. 2017 (the recurrence of back-propagated variance). B.
    Hanin, "Which neural net architectures give rise to exploding and vanishing
    gradients?", NeurIPS 2018 (β); B. Hanin & M. Nica, "Products of many large random
    matrices and gradients in deep neural networks", 2020 (log-normality).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from evenflow.theory.activation_moments import Moments, moments
from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.maps import q_sensitivity

T = TypeVar("T")

NARROW = 32
"""Widths up to this are too small for mean-field theory."""
DEEP_FOR_WIDTH = 0.3
"""Beyond this ratio of depth to width, β exceeds about 1 and one net says little about another."""
_SETTLED = 1e-13
_UNSTABLE = 1.0 + 1e-6


@dataclass(frozen=True, slots=True)
class ChainProfile:
    """What to expect of the gradient at each pre-activation h_1 … h_L of a chain.

    Attributes:
        activation: Name of φ.
        widths: n_1 … n_L.
        q: Mean square of the pre-activations, per layer.
        activation_mean_square: E x_l² of the layers' outputs, for l = 1 … L − 1.
        log10_gradient_norm: log10 √(E‖δ_l‖²/E‖δ_L‖²) per layer, 0 at the last.
        beta: Variance of ln(‖δ_l‖²/‖δ_L‖²) over random nets, per layer.
        doubts: Why the figures may not hold, one sentence each; empty where
            mean-field theory is at home.
    """

    activation: str
    widths: tuple[int, ...]
    q: tuple[float, ...]
    activation_mean_square: tuple[float, ...]
    log10_gradient_norm: tuple[float, ...]
    beta: tuple[float, ...]
    doubts: tuple[str, ...]

    @property
    def depth(self) -> int:
        """L, the number of linear layers."""
        return len(self.q)

    @property
    def log10_ratio(self) -> float:
        """Mean-field log10 of the gradient norm at the first pre-activation over that at the last."""
        return self.log10_gradient_norm[0]

    @property
    def log10_gradient_rms(self) -> tuple[float, ...]:
        """As ``log10_gradient_norm``, per entry instead of per layer."""
        last = self.widths[-1]
        return tuple(
            norm - 0.5 * math.log10(width / last)
            for norm, width in zip(self.log10_gradient_norm, self.widths, strict=True)
        )

    @property
    def typical_log10_gradient_norm(self) -> tuple[float, ...]:
        """What one run shows in the middle: the median, below the mean by β/(4 ln 10)."""
        return tuple(
            norm - beta / (4.0 * math.log(10.0))
            for norm, beta in zip(self.log10_gradient_norm, self.beta, strict=True)
        )

    @property
    def log10_std(self) -> tuple[float, ...]:
        """Standard deviation over random nets of log10(‖δ_l‖/‖δ_L‖), √β/(2 ln 10).

        For the gradient of one sample. That of a batch scatters no more.
        """
        return tuple(math.sqrt(beta) / (2.0 * math.log(10.0)) for beta in self.beta)

    def interval(self, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Where log10(‖δ_l‖/‖δ_L‖) of one run lies with the given probability, (low, high) per layer.

        Raises:
            TheoryError: The level is not between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise TheoryError(f"a level lies between 0 and 1, got {level}")
        reach = NormalDist().inv_cdf(0.5 + 0.5 * level)
        return tuple(
            (centre - reach * std, centre + reach * std)
            for centre, std in zip(self.typical_log10_gradient_norm, self.log10_std, strict=True)
        )


def chain_profile(
    activation: ActivationLike,
    *,
    depth: int,
    width: int | Sequence[int],
    sigma_w2: float | Sequence[float],
    sigma_b2: float | Sequence[float] = 0.0,
    input_mean_square: float = 1.0,
    orthogonal: bool = False,
) -> ChainProfile:
    """The gradient to expect at each pre-activation of a plain chain.

    Args:
        activation: φ, between the linear layers (none after the last).
        depth: L, the number of linear layers, ≥ 1.
        width: n_l of the layers' outputs: one for all, or L of them.
        sigma_w2: fan_in · Var(W_l): one for all, or L of them.
        sigma_b2: Var(b_l): one for all, or L of them.
        input_mean_square: Mean square of the entries of the input batch
            (uncentred: what counts is what W_1 multiplies).
        orthogonal: Whether weights are (semi-)orthogonal instead of independent.

    Raises:
        TheoryError: Depth or a width is below 1, a list has not L entries, or a
            variance is negative or not finite.
    """
    phi = as_activation(activation)
    if depth < 1:
        raise TheoryError(f"a chain has at least 1 layer, got depth = {depth}")
    widths = _per_layer("width", width, depth)
    weights = _per_layer("sigma_w2", sigma_w2, depth)
    biases = _per_layer("sigma_b2", sigma_b2, depth)
    if min(widths) < 1:
        raise TheoryError(f"widths are at least 1, got {min(widths)}")
    require_variances(
        input_mean_square=input_mean_square, **{"min sigma_w2": min(weights), "min sigma_b2": min(biases)}
    )

    q = [weights[0] * input_mean_square + biases[0]]
    hidden: list[Moments] = []
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden.append(_moments(phi, q[-1], hidden[-1] if hidden else None))
        q.append(weight * hidden[-1].mean_square + bias)

    log10_norm, beta = [0.0], [0.0]
    for layer in range(depth - 2, -1, -1):
        m = hidden[layer]
        rate = weights[layer + 1] * m.derivative_mean_square
        log10_norm.append(log10_norm[-1] + 0.5 * (math.log10(rate) if rate > 0.0 else -math.inf))
        beta.append(beta[-1] + _scatter(m.derivative_spread, widths[layer], widths[layer + 1], orthogonal))
    return ChainProfile(
        activation=phi.name,
        widths=widths,
        q=tuple(q),
        activation_mean_square=tuple(m.mean_square for m in hidden),
        log10_gradient_norm=tuple(reversed(log10_norm)),
        beta=tuple(reversed(beta)),
        doubts=_doubts(phi, widths, q, weights[-1], biases[-1]),
    )


def _moments(phi: ActivationLike, q: float, last: Moments | None) -> Moments:
    """Moments at q, or the last layer's where q has settled (deep chains are long)."""
    return last if last is not None and abs(q - last.q) <= _SETTLED * q else moments(phi, q)


def _scatter(spread: float, inputs: int, outputs: int, orthogonal: bool) -> float:
    """What one layer adds to β: relative variance of ‖δ_l‖²/‖δ_{l+1}‖² over its weights."""
    if not math.isfinite(spread):
        return math.inf
    n, m = inputs, outputs
    if not orthogonal:
        return (3.0 * spread - 1.0) / n
    projection = m * (n + 2.0) / (n * (m + 2.0)) if m > n else 1.0
    return projection * (3.0 * spread + n - 1.0) / (n + 2.0) - 1.0


def _doubts(
    phi: ActivationLike, widths: Sequence[int], q: Sequence[float], sigma_w2: float, sigma_b2: float
) -> tuple[str, ...]:
    doubts = []
    depth, narrowest = len(widths), min(widths[:-1], default=widths[-1])
    if depth > 1 and narrowest <= NARROW:
        doubts.append(f"A layer has only {narrowest} units; mean-field theory needs more than {NARROW}.")
    if depth > DEEP_FOR_WIDTH * narrowest:
        doubts.append(
            f"Depth {depth} over width {narrowest} is above {DEEP_FOR_WIDTH}: nets drawn alike differ widely."
        )
    if depth > 1 and q[-2] > 0.0 and q[-1] > 0.0:
        sensitivity = q_sensitivity(phi, q[-2], sigma_w2, sigma_b2)
        if sensitivity > _UNSTABLE:
            doubts.append(
                f"K = dlog q'/dlog q is {sensitivity:.3g}, above 1: variance itself is unstable with depth."
            )
    return tuple(doubts)


def _per_layer(name: str, value: T | Sequence[T], depth: int) -> tuple[T, ...]:
    """One value for each of the layers."""
    if not isinstance(value, Sequence):
        return (value,) * depth
    if len(value) != depth:
        raise TheoryError(
            f"{name} is one value or one for each of the {depth} layers, got {len(value)} values"
        )
    return tuple(value)
