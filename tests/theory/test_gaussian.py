"""Gaussian expectations against closed forms and scipy's adaptive quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, special

from evenflow.theory.errors import TheoryError
from evenflow.theory.gaussian import ScalarFunction, expect, expect_pair

FloatArray = npt.NDArray[np.float64]
CORRELATIONS = [-1.0, -0.3, 0.0, 0.9, 0.9999, 1 - 1e-9, 1.0]
SCALES = [1e-3, 1.0, 300.0]


def density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0)


def step(x: FloatArray) -> FloatArray:
    return np.where(x > 0, 1.0, 0.0)


@pytest.mark.parametrize("std", [1e-4, 0.5, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("power", [0, 1, 2, 4, 8])
def test_moments_of_a_gaussian(std: float, power: int) -> None:
    exact = 0.0 if power % 2 else std**power * math.prod(range(1, power, 2))
    assert expect(lambda x: x**power, std) == pytest.approx(exact, rel=1e-13, abs=1e-13 * std**power)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("std", [0.1, 1.0, 40.0])
def test_rectified_gaussian_with_a_mean(mean: float, std: float) -> None:
    exact = mean * special.ndtr(mean / std) + std * density(mean / std)
    assert expect(relu, std, mean, breakpoints=(0.0,)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_fast_growth(std: float) -> None:
    assert expect(np.exp, std) == pytest.approx(math.exp(std**2 / 2), rel=1e-12)


@pytest.mark.parametrize("std", [0.1, 1.0, 10.0, 1000.0])
def test_tanh_squared_against_scipy(std: float) -> None:
    ends = [0.0, *(x / std for x in (0.5, 1, 2, 4, 8)), *(1.0, 2.0, 4.0, 12.0)]
    ends = sorted(x for x in ends if x <= 12)
    exact = sum(
        integrate.quad(lambda z: 2 * density(z) * math.tanh(std * z) ** 2, a, b, epsabs=0, epsrel=1e-13)[0]
        for a, b in itertools.pairwise(ends)
    )
    assert expect(lambda x: np.tanh(x) ** 2, std) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("std", [1.0, 50.0, 1e6])
def test_a_narrow_peak_is_seen(std: float) -> None:
    """E exp(−u²) = 1/√(1 + 2σ²), a peak of width 1/σ at 0 and nothing elsewhere."""
    exact = 1 / math.sqrt(1 + 2 * std**2)
    assert expect(lambda x: np.exp(-x * x), std) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("c", [0.5, 1 - 1e-6, 1 - 1e-14])
def test_a_narrow_peak_of_the_inner_function_is_seen(c: float) -> None:
    std = 1e6
    found = expect_pair(np.ones_like, lambda x: np.exp(-x * x), c, 1.0, std)
    assert found == pytest.approx(1 / math.sqrt(1 + 2 * std**2), rel=1e-10)


def test_an_undeclared_kink_at_0_that_the_other_variable_rounds_is_seen() -> None:
    c = 1 - 1e-6
    exact = (math.sqrt((1 - c) * (1 + c)) + (math.pi - math.acos(c)) * c) / (2 * math.pi)
    assert expect_pair(relu, relu, c) == pytest.approx(exact, abs=1e-12)


def test_std_zero_is_the_value_at_the_mean() -> None:
    assert expect(np.cosh, 0.0, 1.5) == math.cosh(1.5)


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("std", SCALES)
class TestClosedFormPairs:
    def test_relu_arc_cosine_kernel_of_degree_1(self, c: float, std: float) -> None:
        """Cho & Saul 2009, eq. 6 with n = 1."""
        exact = std**2 * (math.sqrt((1 - c) * (1 + c)) + (math.pi - math.acos(c)) * c) / (2 * math.pi)
        found = expect_pair(relu, relu, c, std, std, breakpoints_f=(0.0,), breakpoints_g=(0.0,))
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-13 * std**2)

    def test_step_arc_cosine_kernel_of_degree_0(self, c: float, std: float) -> None:
        exact = (math.pi - math.acos(c)) / (2 * math.pi)
        found = expect_pair(step, step, c, std, std, breakpoints_f=(0.0,), breakpoints_g=(0.0,))
        assert found == pytest.approx(exact, abs=1e-12)

    def test_leaky_relu(self, c: float, std: float) -> None:
        slope = 0.2
        kernel = (math.sqrt((1 - c) * (1 + c)) + (math.pi - math.acos(c)) * c) / math.pi
        exact = std**2 * ((1 - slope) ** 2 * kernel / 2 + slope * c)

        def leaky(x: FloatArray) -> FloatArray:
            return np.where(x > 0, x, slope * x)

        found = expect_pair(leaky, leaky, c, std, std, breakpoints_f=(0.0,), breakpoints_g=(0.0,))
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-12 * std**2)

    def test_erf_arcsine_kernel(self, c: float, std: float) -> None:
        """Williams 1997, the kernel of infinite erf nets."""
        exact = 2 / math.pi * math.asin(2 * std**2 * c / (1 + 2 * std**2))
        assert expect_pair(special.erf, special.erf, c, std, std) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("std", [0.1, 1.0, 10.0])
def test_sine_pair(c: float, std: float) -> None:
    exact = 0.5 * (math.exp(-(std**2) * (1 - c)) - math.exp(-(std**2) * (1 + c)))
    assert expect_pair(np.sin, np.sin, c, std, std) == pytest.approx(exact, abs=1e-12)


def test_different_functions_and_scales() -> None:
    """E[exp(a u₁) relu(u₂)] shifts the mean of u₂ by a c σ₁σ₂."""
    a, c, s1, s2 = 0.6, -0.4, 1.3, 2.1
    mean = a * c * s1 * s2
    exact = math.exp((a * s1) ** 2 / 2) * (mean * special.ndtr(mean / s2) + s2 * density(mean / s2))
    found = expect_pair(lambda x: np.exp(a * x), relu, c, s1, s2, breakpoints_g=(0.0,))
    assert found == pytest.approx(exact, rel=1e-11)


def test_several_breakpoints_against_steps() -> None:
    """P(u₁ > 1, u₂ > −0.5) by scipy, as a product of two jumps off the centre."""
    c = 0.8
    exact, _ = integrate.quad(
        lambda z: density(z) * special.ndtr((0.5 + c * z) / math.sqrt(1 - c**2)), 1, 12, epsrel=1e-13
    )
    found = expect_pair(
        lambda x: (x > 1) * 1.0,
        lambda x: (x > -0.5) * 1.0,
        c,
        breakpoints_f=(1.0,),
        breakpoints_g=(-0.5,),
    )
    assert found == pytest.approx(exact, abs=1e-12)


def _shifted(f: ScalarFunction, by: float) -> ScalarFunction:
    return lambda x: f(x - by)


def test_undeclared_breakpoints_stay_within_what_the_module_says() -> None:
    """Kinks and jumps at 150 random places: most are found, none is worse than stated."""
    places = np.random.default_rng(0).normal(size=150)
    densities = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    kinks = [expect(_shifted(relu, b)) for b in places]
    jumps = [expect(_shifted(step, b)) for b in places]
    kink_error = np.abs(kinks - (densities - places * special.ndtr(-places)))
    jump_error = np.abs(jumps - special.ndtr(-places))
    assert np.median(kink_error) < 1e-12
    assert kink_error.max() < 1e-5
    assert np.median(jump_error) < 1e-11
    assert jump_error.max() < 3e-3


class TestMistakes:
    def test_not_finite(self) -> None:
        with pytest.raises(
            TheoryError, match=r"the function is inf at x = .*; its expectation does not exist"
        ):
            expect(lambda x: np.where(x > 2, np.inf, 0.0))

    def test_not_vectorised(self) -> None:
        with pytest.raises(TheoryError, match=r"must return its shape: from .* came \(\).*np.vectorize"):
            expect(lambda _: 1.0)  # type: ignore[arg-type, return-value]

    def test_noise(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(TheoryError, match="too rough to integrate to 1e-12"):
            expect(lambda x: x + 1e-3 * rng.normal(size=x.shape))

    def test_noise_is_accepted_with_a_larger_tolerance(self) -> None:
        rng = np.random.default_rng(0)
        found = expect(lambda x: x * x + 1e-6 * rng.normal(size=x.shape), tolerance=1e-4)
        assert found == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
    def test_std(self, std: float) -> None:
        with pytest.raises(TheoryError, match="a standard deviation is a finite number ≥ 0"):
            expect(np.tanh, std)

    @pytest.mark.parametrize("c", [1.1, -1.0001, math.nan])
    def test_correlation(self, c: float) -> None:
        with pytest.raises(TheoryError, match="a correlation lies between -1 and 1"):
            expect_pair(np.tanh, np.tanh, c)
