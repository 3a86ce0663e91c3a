"""Rates of gradients through plain nets with a normalisation in every layer.

A norm divides by the standard deviation of what it sees, and so does the
gradient on its way back. With unit scale and zero shift, per layer:

    before φ:  h = W φ(z) + b,   z = norm(h)     rate = σ_w² E φ'(z)²/V,     z ~ N(0, 1)
    after φ:   h = W x + b,      x = norm(φ(h))  rate = σ_w² E φ'(√q z)²/V,  q = σ_w² + σ_b²

where V is the variance that the norm divides by. Before φ this is
σ_w² E φ² + σ_b² for LayerNorm and RMSNorm, which see one sample, and
σ_w² Var φ for BatchNorm, whose batch has lost what all its samples share. After φ
it is E φ² for RMSNorm and Var φ for the other two.

BatchNorm in a plain net makes gradients *explode*: at 1.47 per layer with ReLU.
All of it holds for many features and, with BatchNorm, for a large batch.

References:
    G. Yang et al., "A mean field theory of batch normalization", ICLR 2019
    (ReLU π/(π − 1), and linear nets at a finite batch).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from evenflow.theory.activation_moments import moments
from evenflow.theory.activations import ActivationLike, as_activation
from evenflow.theory.errors import TheoryError, require_variances

Norm: TypeAlias = Literal["layer_norm", "rms_norm", "batch_norm"]


def norm_rate(
    activation: ActivationLike,
    norm: Norm,
    *,
    position: Literal["before", "after"] = "before",
    sigma_w2: float = 1.0,
    sigma_b2: float = 0.0,
) -> float:
    """Factor on E‖gradient‖² per layer backwards, in a deep plain net with norms.

    Args:
        activation: φ.
        norm: Which normalisation, without a learned scale or shift.
        position: Whether it stands before φ (linear, norm, φ) or after it
            (linear, φ, norm).
        sigma_w2: fan_in · Var(W). Before φ and without a bias it cancels.
        sigma_b2: Var(b).

    Raises:
        TheoryError: The norm or position is not known, σ_w² is 0, or a
            BatchNorm after φ meets a bias (each unit then has a mean of its own,
            and there is no closed form).
    """
    phi = as_activation(activation)
    require_variances(sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    if norm not in ("layer_norm", "rms_norm", "batch_norm"):
        raise TheoryError(f"norm is 'layer_norm', 'rms_norm' or 'batch_norm', got {norm!r}")
    if position not in ("before", "after"):
        raise TheoryError(f"position is 'before' or 'after' the activation, got {position!r}")
    if sigma_w2 == 0.0:
        raise TheoryError("a layer with sigma_w2 = 0 passes nothing to its norm; take sigma_w2 above 0")
    if norm == "batch_norm" and sigma_b2 > 0 and position == "after":
        raise TheoryError(
            "no closed form for BatchNorm after the activation with sigma_b2 > 0; take 0, or measure"
        )
    m = moments(phi, 1.0 if position == "before" else sigma_w2 + sigma_b2)
    if position == "after":
        divisor = m.mean_square if norm == "rms_norm" else m.variance
    elif norm == "batch_norm":
        divisor = sigma_w2 * m.variance
    else:
        divisor = sigma_w2 * m.mean_square + sigma_b2
    return sigma_w2 * m.derivative_mean_square / divisor if divisor > 0.0 else math.inf


def linear_batch_norm_rate(batch_size: int) -> float:
    """Rate of a deep linear net with BatchNorm at a finite batch, (B − 2)/(B − 3).

    Args:
        batch_size: Samples per batch, B ≥ 4.

    Returns:
        The rate; ``inf`` at B = 3, where its mean does not exist.

    Raises:
        TheoryError: B < 3.

    References:
        G. Yang et al. 2019.
    """
    if batch_size < 3:
        raise TheoryError(f"BatchNorm passes no gradient with fewer than 3 samples, got {batch_size}")
    return math.inf if batch_size == 3 else (batch_size - 2) / (batch_size - 3)
