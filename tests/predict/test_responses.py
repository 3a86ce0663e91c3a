"""The algebra of responses, against drawn fluctuations."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.predict.coefficients import Coefficients
from evenflow.predict.fields import Leaf
from evenflow.predict.responses import (
    NONE,
    Response,
    Responses,
    mixed,
    of_function,
    of_product,
    with_source,
)
from evenflow.predict.table import independent

DRAWS = 200_000


def _response(*a: float) -> Response:
    """Of a log-normal S with E S = 1."""
    to = Coefficients.of(a)
    return Response(to, -to.dot(to) / 2)


def _drawn(response: Response, noise: np.ndarray) -> np.ndarray:
    """Ln S."""
    return noise[..., : response.to.size] @ response.to.array + response.shift


def test_a_source_is_one_wherever_it_comes_in() -> None:
    """Twice the same tensor: deviations add up; two tensors: variances do."""
    x, y = (Leaf(independent((4, 4), 1.0)) for _ in range(2))
    once = with_source(NONE, x, 0.04)
    assert once.variance == pytest.approx(0.04)
    assert once.shift == pytest.approx(-0.02)
    assert with_source(once, x, 0.04).variance == pytest.approx(0.16)
    assert with_source(once, y, 0.05).variance == pytest.approx(0.09)
    assert with_source(once, y, 0.0) is once


def test_a_sum() -> None:
    """.3 S₁ + .7 S₂ of S that have one source of two in common."""
    parts, shares = [_response(0.3, 0.1), _response(0.0, -0.2)], [0.3, 0.7]
    noise = np.random.default_rng(0).standard_normal((DRAWS, 2))
    log = np.log(sum(w * np.exp(_drawn(p, noise)) for w, p in zip(shares, parts, strict=True)))
    found = mixed(shares, parts)
    assert found.shift == pytest.approx(log.mean(), abs=5e-4)
    assert found.variance == pytest.approx(log.var(), rel=0.05)


def test_a_function_of_what_differs_from_draw_to_draw_and_from_sample_to_sample() -> None:
    """F(q) = q²/(1 + q) of q that all of many samples share but for a part of their own."""
    shared, alone = _response(0.1), _response(0.0, 0.15)
    rng = np.random.default_rng(0)
    noise, own = rng.standard_normal((4_000, 1)), rng.standard_normal((4_000, 200))
    q = np.exp(_drawn(shared, noise)[:, None] + 0.15 * own + alone.shift)
    log = np.log((q**2 / (1 + q)).mean(1) * 2)
    # ln F = 2 ln q − ln(1 + q): at q = 1 the derivatives are 2 − 1/2 and −1/4
    found = of_function(Responses(shared, shared, apart=alone), 1.5, -0.25).square
    assert found.shift == pytest.approx(log.mean(), abs=4e-3)
    assert found.shift - 1.5 * shared.shift > 4e-3  # k times the shift of q is not all of it
    assert found.variance == pytest.approx(log.var(), rel=0.1)


def test_a_product_of_factors_that_agree_on_which_samples_are_large() -> None:
    """E of S T over samples exceeds the product of the means by their covariance."""
    noise = np.random.default_rng(0).standard_normal((DRAWS, 2))
    first, second = _response(0.3), _response(0.2, 0.1)
    product = np.exp(_drawn(first, noise)) * np.exp(_drawn(second, noise))
    found = of_product([Responses(NONE, NONE, apart=first), Responses(NONE, NONE, apart=second)])
    assert found.square.shift == pytest.approx(np.log(product.mean()), abs=5e-3)
    assert found.sum is NONE
    assert found.apart.variance == pytest.approx(0.5**2 + 0.1**2)
