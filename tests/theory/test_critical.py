"""The critical line against reference figures, mpmath's digits, closed forms and its definition."""

from __future__ import annotations

import math

import pytest

from evenflow.theory.critical import critical_point, edge_of_chaos
from evenflow.theory.errors import TheoryError
from evenflow.theory.fixed_points import q_star
from evenflow.theory.maps import chi, q_map

# tanh: σ_w² → σ_b², reference figures of seven digits, compared to relative 1e-5.
TANH = {1.05: 2.010521e-5, 1.1: 1.556917e-4, 1.5: 1.581788e-2, 2.0: 0.1037798}

# The same by mpmath with 30 digits: quad over 0 … 14 of 2 φ(√q z)² npdf(z), and findroot for q.
TANH_MPMATH = {
    1.05: 2.0105213388267e-5,
    1.1: 1.55691686880285e-4,
    1.5: 1.58178774217571581e-2,
    2.0: 0.103779805213042533,
    3.0: 0.612497747947386916,
}


@pytest.mark.parametrize("sigma_w2", TANH)
def test_reference_line_of_tanh(sigma_w2: float) -> None:
    assert edge_of_chaos("tanh", sigma_w2=sigma_w2).sigma_b2 == pytest.approx(TANH[sigma_w2], rel=1e-5)


@pytest.mark.parametrize("sigma_w2", TANH_MPMATH)
def test_line_of_tanh_to_ten_digits(sigma_w2: float) -> None:
    found = edge_of_chaos("tanh", sigma_w2=sigma_w2)
    assert found.sigma_b2 == pytest.approx(TANH_MPMATH[sigma_w2], rel=1e-10)
    assert found.stable


def test_line_of_tanh_the_other_way() -> None:
    assert edge_of_chaos("tanh", sigma_b2=0.05).sigma_w2 == pytest.approx(1.760955, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tanh", {"sigma_w2": 1.3}),
        ("erf", {"sigma_b2": 0.2}),
        ("hardtanh", {"sigma_w2": 1.5}),
        ("selu", {"sigma_b2": 0.05}),
        ("softsign", {"sigma_w2": 2.0}),
        ("sin", {"sigma_b2": 0.05}),
        ("sigmoid", {"sigma_b2": 0.05}),
    ],
)
def test_by_definition(name: str, given: dict[str, float]) -> None:
    """Iterating the q map arrives at q, and χ₁ is 1 there."""
    point = edge_of_chaos(name, **given)
    assert point.stable
    q = 1.1 * point.q
    for _ in range(400):
        q = q_map(name, q, point.sigma_w2, point.sigma_b2)
    assert q == pytest.approx(point.q, rel=1e-6)
    assert chi(name, q, point.sigma_w2) == pytest.approx(1.0, rel=1e-6)
    for key, value in given.items():
        assert getattr(point, key) == pytest.approx(value, rel=1e-9)


def test_erf_in_closed_form() -> None:
    """χ₁ = σ_w² 4/π /√(1+4q) = 1 and σ_b² = q − σ_w² 2/π asin(2q/(1+2q))."""
    w = 1.6
    q = ((4 * w / math.pi) ** 2 - 1) / 4
    point = edge_of_chaos("erf", sigma_w2=w)
    assert point.q == pytest.approx(q, rel=1e-11)
    assert point.sigma_b2 == pytest.approx(q - w * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-10)


@pytest.mark.parametrize(("name", "w"), [("relu", 2.0), ("leaky_relu", 2 / (1 + 0.01**2)), ("identity", 1.0)])
def test_rectifiers_have_one_point(name: str, w: float) -> None:
    """He et al. 2015: σ_w² = 2/(1 + slope²), σ_b² = 0, at every q."""
    for point in (
        edge_of_chaos(name, sigma_b2=0.0),
        edge_of_chaos(name, sigma_w2=w),
        critical_point(name, 7.0),
    ):
        assert point.sigma_w2 == pytest.approx(w, rel=1e-12)
        assert point.sigma_b2 == 0.0
        assert point.stable
    assert edge_of_chaos(name, sigma_b2=0.0).q == 1.0


def test_the_end_of_the_line_is_reached_only_in_the_limit() -> None:
    """tanh without a bias: σ_w² = 1/φ'(0)² = 1 at q → 0."""
    point = edge_of_chaos("tanh", sigma_b2=0.0)
    assert (point.q, point.sigma_b2) == (0.0, 0.0)
    assert point.sigma_w2 == pytest.approx(1.0, abs=1e-9)


def test_gelu_has_a_point_that_q_leaves() -> None:
    point = critical_point("gelu")
    assert point.sigma_w2 == pytest.approx(1.481114**2, rel=1e-5)
    assert q_map("gelu", 1.0, point.sigma_w2, point.sigma_b2) == pytest.approx(1.0, rel=1e-12)
    assert not point.stable
    assert q_star("gelu", point.sigma_w2, point.sigma_b2, start=1.01) == math.inf


@pytest.mark.parametrize(
    ("name", "given"),
    [("sigmoid", {"sigma_w2": 16.0}), ("softplus", {"sigma_b2": 0.0}), ("hardshrink", {"sigma_w2": 1.0})],
)
def test_no_point_is_made_up(name: str, given: dict[str, float]) -> None:
    """Sigmoid has χ₁ = 1 at σ_w² = 16 as q → 0, but its output keeps q at 4."""
    with pytest.raises(TheoryError, match=f"{name} has no critical point with"):
        edge_of_chaos(name, **given)


@pytest.mark.parametrize(("name", "w"), [("softshrink", 3.0), ("tanhshrink", 30.0)])
def test_activations_that_are_flat_at_0(name: str, w: float) -> None:
    """Near q = 0 nothing passes, and rounding eats x − tanh x: the search begins where it can."""
    point = edge_of_chaos(name, sigma_w2=w)
    assert q_map(name, point.q, w, point.sigma_b2) == pytest.approx(point.q, rel=1e-9)
    assert chi(name, point.q, w) == pytest.approx(1.0, rel=1e-9)
    with pytest.raises(TheoryError, match=f"{name} has no critical point with sigma_b2 = 0"):
        edge_of_chaos(name, sigma_b2=0.0)


class TestMistakes:
    def test_sigmoid_at_q_1(self) -> None:
        with pytest.raises(
            TheoryError, match=r"sigmoid has no critical point at q = 1: .* negative sigma_b2"
        ):
            critical_point("sigmoid")

    def test_relu_elsewhere(self) -> None:
        with pytest.raises(TheoryError, match=r"relu has no critical point with sigma_w2 = 1.5"):
            edge_of_chaos("relu", sigma_w2=1.5)

    def test_neither_or_both(self) -> None:
        with pytest.raises(TheoryError, match="give exactly one"):
            edge_of_chaos("tanh")
        with pytest.raises(TheoryError, match="give exactly one"):
            edge_of_chaos("tanh", sigma_w2=1.0, sigma_b2=0.0)

    def test_zero(self) -> None:
        with pytest.raises(TheoryError, match="a q above 0"):
            critical_point("tanh", 0.0)
        with pytest.raises(TheoryError, match="weights of variance 0 pass no gradient"):
            edge_of_chaos("tanh", sigma_w2=0.0)
