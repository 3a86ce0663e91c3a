"""Gaussian expectations of ATen functions against adaptive quadrature and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evenflow.predict.scalar import VARIABLE, Scalar, _double, expect, expect_pair, times
from evenflow.theory import gaussian

aten = torch.ops.aten
FUNCTIONS = {
    name: Scalar(getattr(aten, name).default, (VARIABLE,))
    for name in ("relu", "gelu", "tanh", "sigmoid", "silu", "elu")
}


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def numpy_of(f: Scalar) -> Callable[[Any], Any]:
    return lambda u: f(torch.from_numpy(np.asarray(u, dtype=float))).numpy()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 0.1), (-0.5, 2.0), (0.0, 8.0)])
def test_mean_and_mean_square(name: str, mean: float, std: float) -> None:
    f = FUNCTIONS[name]
    m, v = array(mean), array(std**2)
    reference = numpy_of(f)
    assert expect(f, m, v)[0] == pytest.approx(
        gaussian.expect(reference, std, mean, breakpoints=(0.0,)), rel=1e-6, abs=1e-9
    )
    square = gaussian.expect(lambda u: reference(u) ** 2, std, mean, breakpoints=(0.0,))
    assert expect_pair(f, f, (m, m), (v, v), v)[0] == pytest.approx(square, rel=1e-6)


@pytest.mark.parametrize("rho", [-0.9, -0.2, 0.4, 0.99, 0.99999])
def test_relu_pair_is_the_arc_cosine_kernel(rho: float) -> None:
    """Cho & Saul 2009, eq. 6."""
    one, zero = array(1.0), array(0.0)
    expected = (math.sqrt(1 - rho**2) + (math.pi - math.acos(rho)) * rho) / (2 * math.pi)
    found = expect_pair(FUNCTIONS["relu"], FUNCTIONS["relu"], (zero, zero), (one, one), array(rho))
    assert found[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.4, 0.7, 0.85])
def test_mehlers_series_is_exact(rho: float) -> None:
    """The arc-cosine kernel to rounding, where the remainder's bound says that the series suffices."""
    expected = (math.sqrt(1 - rho**2) + (math.pi - math.acos(rho)) * rho) / (2 * math.pi)
    found = expect_pair(
        FUNCTIONS["relu"],
        FUNCTIONS["relu"],
        (array(0.0), array(0.0)),
        (array(1.0), array(4.0)),
        array(2 * rho),
    )
    assert found[0] == pytest.approx(2 * expected, rel=1e-11)


@pytest.mark.parametrize("name", ["gelu", "tanh", "silu"])
@pytest.mark.parametrize("rho", [-0.9, 0.3, 0.99])
def test_series_and_quadrature_agree(name: str, rho: float) -> None:
    f, g = FUNCTIONS[name], FUNCTIONS["sigmoid"]
    at = array(0.3), array(-0.2), array(0.5), array(0.8), array(rho * math.sqrt(0.4))
    series = expect_pair(f, g, at[:2], at[2:4], at[4])
    assert series[0] == pytest.approx(_double(f, g, *at)[0], abs=1e-10)


def test_unequal_variances() -> None:
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, 1_000_000))
    v = 0.5 + 2 * (0.6 * u + 0.8 * w)
    f, g = FUNCTIONS["gelu"], FUNCTIONS["tanh"]
    product = numpy_of(f)(u) * numpy_of(g)(v)
    found = expect_pair(f, g, (array(0.0), array(0.5)), (array(1.0), array(4.0)), array(1.2))
    assert found[0] == pytest.approx(product.mean(), abs=5 * product.std() / 1000)


def test_linear_factors_are_exact() -> None:
    f = FUNCTIONS["gelu"]
    pair = (array(0.4), array(-0.2)), (array(2.0), array(1.5)), array(0.7)
    direct = expect_pair(VARIABLE, f, *pair)
    numeric = expect_pair(Scalar(torch.mul, (VARIABLE, 1.0)), f, *pair)
    assert direct[0] == pytest.approx(numeric[0], rel=1e-6)


def test_product_of_functions() -> None:
    u = torch.linspace(-2, 2, 5, dtype=torch.float64)
    f, g = FUNCTIONS["relu"], FUNCTIONS["tanh"]
    assert torch.equal(times(f, g)(u), f(u) * g(u))


def test_memory_tells_functions_apart() -> None:
    one, zero = array(1.0), array(0.0)
    leaky = [Scalar(aten.leaky_relu.default, (VARIABLE, slope)) for slope in (0.1, 0.3)]
    first, second = (expect(f, zero, one)[0] for f in leaky)
    assert first == pytest.approx(0.9 / math.sqrt(2 * math.pi), rel=1e-6)
    assert second == pytest.approx(0.7 / math.sqrt(2 * math.pi), rel=1e-6)
