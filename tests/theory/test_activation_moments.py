"""The reference table of activations at q = 1, and moments against Monte Carlo and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evenflow.theory.activation import Activation
from evenflow.theory.activation_moments import moments
from evenflow.theory.activations import get_activation
from evenflow.theory.errors import TheoryError

# E φ, E φ², E φ'², gain, centred gain, backward gain, RMSNorm rate, BatchNorm rate; printed to 6 decimals.
TABLE = {
    "relu": (0.398942, 0.5, 0.5, 1.414214, 1.712859, 1.414214, 1, 1.466942),
    "leaky_relu": (0.394953, 0.500050, 0.500050, 1.414143, 1.704832, 1.414143, 1, 1.453371),
    "leaky_relu 0.2": (0.319154, 0.52, 0.52, 1.386750, 1.546460, 1.386750, 1, 1.243600),
    "tanh": (0, 0.394294, 0.464403, 1.592537, 1.592537, 1.467414, 1.177807, 1.177807),
    "sigmoid": (0.5, 0.293379, 0.044836, 1.846229, 4.801313, 4.722646, 0.152827, 1.033592),
    "gelu": (0.282095, 0.425221, 0.455851, 1.533530, 1.700926, 1.481114, 1.072032, 1.318845),
    "silu": (0.206621, 0.355776, 0.379482, 1.676532, 1.787187, 1.623320, 1.066634, 1.212081),
    "mish": (0.240404, 0.452342, 0.479084, 1.486848, 1.592025, 1.444755, 1.059118, 1.214259),
    "elu": (0.160521, 0.644945, 0.668102, 1.245198, 1.270843, 1.223429, 1.035905, 1.079013),
    "selu": (0, 1, 1.07158, 1, 1, 0.96602, 1.07158, 1.07158),
    "softplus": (0.806059, 0.921246, 0.293379, 1.041867, 1.919126, 1.846229, 0.318459, 1.080528),
    "hardswish": (0.166217, 0.331567, 0.358531, 1.736657, 1.813871, 1.670076, 1.081323, 1.179615),
    "softsign": (0, 0.183014, 0.227671, 2.337533, 2.337533, 2.095781, 1.244010, 1.244010),
    "erf": (0, 0.464559, 0.569410, 1.467167, 1.467167, 1.325218, 1.225700, 1.225700),
}


def named(key: str) -> Activation:
    name, _, slope = key.partition(" ")
    return get_activation(name, negative_slope=float(slope)) if slope else get_activation(name)


def row(phi: Activation) -> tuple[float, ...]:
    m = moments(phi)
    return (
        m.mean,
        m.mean_square,
        m.derivative_mean_square,
        m.gain,
        m.centred_gain,
        m.backward_gain,
        m.rms_norm_rate,
        m.batch_norm_rate,
    )


@pytest.mark.parametrize("key", TABLE)
def test_reference_table(key: str) -> None:
    """Absolute 1e-5, the table's own sixth decimal allowing less than that."""
    np.testing.assert_allclose(row(named(key)), TABLE[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", TABLE)
def test_reference_table_from_a_bare_callable(key: str) -> None:
    """The same with nothing known but φ itself: breakpoints found, derivative numerical."""
    np.testing.assert_allclose(row(Activation.from_callable(named(key).f)), TABLE[key], rtol=0, atol=1e-5)


def test_closed_forms() -> None:
    relu = moments("relu", q=4.0)
    assert relu.mean == pytest.approx(2 / math.sqrt(2 * math.pi), rel=1e-12)
    assert relu.batch_norm_rate == pytest.approx(math.pi / (math.pi - 1), rel=1e-12)
    assert relu.derivative_spread == pytest.approx(2.0, rel=1e-12)
    erf = moments("erf", q=0.7)
    assert erf.mean_square == pytest.approx(2 / math.pi * math.asin(1.4 / 2.4), rel=1e-12)
    assert erf.derivative_mean_square == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * 0.7), rel=1e-12)
    assert erf.derivative_mean_fourth == pytest.approx(16 / math.pi**2 / math.sqrt(1 + 8 * 0.7), rel=1e-12)
    assert moments("selu").mean_square == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["gelu", "hardswish", "mish"])
def test_monte_carlo(name: str) -> None:
    """A million samples, within five standard errors."""
    phi, m = get_activation(name), moments(name, q=2.3)
    u = math.sqrt(2.3) * np.random.default_rng(0).normal(size=1_000_000)
    for samples, exact in (
        (phi(u), m.mean),
        (phi(u) ** 2, m.mean_square),
        (phi.derivative(u) ** 2, m.derivative_mean_square),
        (phi.derivative(u) ** 4, m.derivative_mean_fourth),
    ):
        assert abs(samples.mean() - exact) < 5 * samples.std() / 1000


def test_q_zero_is_the_limit() -> None:
    """φ at 0 exactly; φ' from both sides, so that ReLU has its ½ and not PyTorch's 0."""
    relu = moments("relu", q=0.0)
    assert (relu.mean, relu.mean_square) == (0.0, 0.0)
    assert relu.derivative_mean_square == pytest.approx(0.5)
    assert (relu.gain, relu.rms_norm_rate, relu.batch_norm_rate) == (math.inf, math.inf, math.inf)
    assert moments("sigmoid", q=0.0).mean == 0.5


def test_a_negative_variance_is_refused() -> None:
    with pytest.raises(TheoryError, match="q is a variance, a finite number ≥ 0, got -1"):
        moments("tanh", q=-1.0)
