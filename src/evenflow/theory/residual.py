"""The gradient to expect along the stream of a residual net.

A block is x' = x + α f(x) with f(x) = W₂ φ(norm(W₁ x + b₁)) + b₂, the norm being
optional. With fresh weights of mean 0 the stream and the branch are independent,
so mean squares add, forwards and backwards:

    q' = q + α² (σ_w² E φ(√z u)² + σ_b²),      u ~ N(0, 1),
    E‖δ‖² = (1 + α² σ_w⁴ E φ'(√z u)²/V) E‖δ'‖²,

with z = σ_w² q + σ_b² and V = 1 without a norm. With one z is 1, and V is what it
divides by: σ_w² q + σ_b² for LayerNorm and RMSNorm, which see one sample;
σ_w² (q − s) for BatchNorm, where s is the part of q that all samples of the batch
share: s' = s + α² (σ_w² (E φ)² + σ_b²).

References:
    S. De & S. Smith, NeurIPS 2020, section 2 (norms in branches); S. Hayou et al.,
    "Stable ResNet", AISTATS 2021 (scaled branches); G. Yang & S. Schoenholz,
    "Mean field residual networks", NeurIPS 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from evenflow.theory.activation_moments import moments
from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances
from evenflow.theory.norms import Norm


@dataclass(frozen=True, slots=True)
class ResidualProfile:
    """What to expect along a stream x_0 … x_L of L blocks.

    Attributes:
        q: Mean square of x_l, per place of the stream (L + 1 values).
        log10_gradient_norm: log10 √(E‖δ_l‖²/E‖δ_L‖²) there, 0 at the last.
    """

    q: tuple[float, ...]
    log10_gradient_norm: tuple[float, ...]


def residual_profile(
    activation: ActivationLike,
    *,
    blocks: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    alpha: float = 1.0,
    norm: Norm | Literal["none"] = "none",
    input_mean_square: float = 1.0,
) -> ResidualProfile:
    """The gradient to expect along a residual stream.

    Args:
        activation: φ, in the middle of each branch.
        blocks: L, at least 1.
        sigma_w2: fan_in · Var(W) of both weights of a branch.
        sigma_b2: Var(b) of both biases.
        alpha: What branches are multiplied by; 0 at the start of SkipInit.
        norm: What stands before φ, without a learned scale or shift.
        input_mean_square: Mean square of x_0, different in every sample.

    Raises:
        TheoryError: There is no block, the norm is not known, a weight of size 0
            stands before a norm, or a variance is negative or not finite.
    """
    phi = as_activation(activation)
    require_variances(sigma_w2=sigma_w2, sigma_b2=sigma_b2, input_mean_square=input_mean_square)
    if blocks < 1:
        raise TheoryError(f"a residual net has at least 1 block, got blocks = {blocks}")
    if norm not in ("none", "layer_norm", "rms_norm", "batch_norm"):
        raise TheoryError(f"norm is 'none', 'layer_norm', 'rms_norm' or 'batch_norm', got {norm!r}")
    if norm != "none" and sigma_w2 == 0.0:
        raise TheoryError("a branch with sigma_w2 = 0 passes nothing to its norm; take sigma_w2 above 0")
    q, shared, rates = [input_mean_square], 0.0, []
    for _ in range(blocks):
        before = sigma_w2 * q[-1] + sigma_b2
        divisor = {"none": 1.0, "batch_norm": sigma_w2 * (q[-1] - shared)}.get(norm, before)
        m = moments(phi, before if norm == "none" else 1.0)
        rates.append(1.0 + alpha**2 * sigma_w2**2 * m.derivative_mean_square / divisor)
        q.append(q[-1] + alpha**2 * (sigma_w2 * m.mean_square + sigma_b2))
        shared += alpha**2 * (sigma_w2 * m.mean**2 + sigma_b2)
    levels = [0.0]
    for rate in reversed(rates):
        levels.append(levels[-1] + 0.5 * math.log10(rate))
    return ResidualProfile(tuple(q), tuple(reversed(levels)))
