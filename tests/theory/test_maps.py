"""Maps, fixed points and depth scales against closed forms, reference figures and wide torch layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evenflow.theory.activations import get_activation
from evenflow.theory.critical import edge_of_chaos
from evenflow.theory.errors import TheoryError
from evenflow.theory.fixed_points import c_star, fixed_point, q_star, trainable_depth
from evenflow.theory.maps import c_map, chi, covariance_map, depth_scale, q_map, q_sensitivity

# tanh at σ_b² = .05: σ_w² → q*, χ₁, c*; printed to 5 decimals, so absolute 1e-5 (None: not printed).
TANH = {
    1.3: (0.31532, 0.88016, 1.0),
    1.5: (None, 0.93864, 1.0),
    2.0: (None, 1.04767, 0.74408),
    4.0: (None, 1.34240, 0.16506),
}


class TestMaps:
    @pytest.mark.parametrize("q", [0.1, 1.0, 30.0])
    def test_erf_in_closed_form(self, q: float) -> None:
        """Williams 1997: E erf(u₁)erf(u₂) = 2/π asin(2qc/(1+2q)), and its derivative by c."""
        w, b, c = 1.7, 0.2, 0.6
        variance = w * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)) + b
        covariance = w * 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)) + b
        assert q_map("erf", q, w, b) == pytest.approx(variance, rel=1e-12)
        assert covariance_map("erf", c, q, w, b) == pytest.approx(covariance, rel=1e-12)
        assert c_map("erf", c, q, w, b) == pytest.approx(covariance / variance, rel=1e-12)
        for at in (c, 1.0):
            slope = w * 4 / math.pi / math.sqrt((1 + 2 * q) ** 2 - (2 * q * at) ** 2)
            assert chi("erf", q, w, at) == pytest.approx(slope, rel=1e-12)

    @pytest.mark.parametrize("name", ["tanh", "gelu", "hardswish", "selu"])
    def test_chi_is_the_slope_of_the_covariance_by_price(self, name: str) -> None:
        """Price 1958: d/dc E[φ(u₁)φ(u₂)] = q E[φ'(u₁)φ'(u₂)]."""
        q, w, c, step = 1.4, 1.2, 0.35, 1e-4
        rise = covariance_map(name, c + step, q, w) - covariance_map(name, c - step, q, w)
        assert rise / (2 * step) == pytest.approx(q * chi(name, q, w, c), rel=1e-6)

    @pytest.mark.parametrize("name", ["tanh", "gelu", "sigmoid", "relu"])
    def test_sensitivity_is_the_slope_of_the_q_map(self, name: str) -> None:
        q, w, b, step = 0.8, 1.9, 0.1, 1e-4
        up, down = (math.log(q_map(name, q * math.exp(s), w, b)) for s in (step, -step))
        assert q_sensitivity(name, q, w, b) == pytest.approx((up - down) / (2 * step), rel=1e-6)

    def test_sensitivity_of_relu_is_1(self) -> None:
        assert q_sensitivity("relu", 3.0, 2.0) == pytest.approx(1.0, rel=1e-12)

    def test_two_inputs_of_different_size(self) -> None:
        """ReLU is homogeneous: its correlation does not know the sizes, its covariance does."""
        same = c_map("relu", 0.3, 1.0, 2.0)
        assert c_map("relu", 0.3, 1.0, 2.0, q_other=9.0) == pytest.approx(same, rel=1e-12)
        assert covariance_map("relu", 0.3, 1.0, 2.0, q_other=9.0) == pytest.approx(3 * same, rel=1e-12)

    def test_c_1_stays_1(self) -> None:
        assert c_map("gelu", 1.0, 1.3, 2.0, 0.1) == pytest.approx(1.0, abs=1e-14)

    @pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "sigmoid"])
    def test_wide_torch_layers(self, name: str) -> None:
        """Two inputs through real Linear layers of width 2000: variance, correlation and gradient.

        Each figure is a mean over 2000 units and scatters by about 2/√2000 = 4.5 %;
        four layers of it are averaged, and 6 % is allowed.
        """
        width, w, b, c0 = 2000, 1.8, 0.15, 0.4
        generator = torch.Generator().manual_seed(0)
        f = getattr(torch, name, None) or getattr(torch.nn.functional, name)
        ratios = []
        for _ in range(4):
            z = torch.linalg.qr(torch.randn(width, 2, generator=generator))[0].T * math.sqrt(width)
            h = torch.stack([z[0], c0 * z[0] + math.sqrt(1 - c0**2) * z[1]]) * math.sqrt(0.9)
            layer = torch.nn.utils.skip_init(torch.nn.Linear, width, width)
            with torch.no_grad():
                layer.weight.normal_(0, math.sqrt(w / width), generator=generator)
                layer.bias.normal_(0, math.sqrt(b), generator=generator)
            h.requires_grad_()
            following = layer(f(h))
            # The same cotangent for both inputs, so that their gradients' inner product is χ at c.
            cotangent = torch.randn(width, generator=generator)
            (gradient,) = torch.autograd.grad(following, h, cotangent.expand(2, -1))
            forward, backward = following.detach() @ following.detach().T / width, gradient @ gradient.T
            unit = float(cotangent @ cotangent)
            ratios.append(
                (
                    float(forward[0, 0]) / q_map(name, 0.9, w, b),
                    float(forward[0, 1]) / covariance_map(name, c0, 0.9, w, b),
                    float(backward[0, 0]) / unit / chi(name, 0.9, w),
                    float(backward[0, 1]) / unit / chi(name, 0.9, w, c0),
                )
            )
        np.testing.assert_allclose(np.mean(ratios, axis=0), 1.0, atol=0.06)

    def test_an_activation_object_is_as_good_as_its_name(self) -> None:
        assert q_map(get_activation("tanh"), 1.0, 2.0) == q_map("tanh", 1.0, 2.0)


class TestDepthScale:
    def test_is_where_the_rate_has_made_a_factor_e(self) -> None:
        for rate in (0.8, 1.25):
            assert rate ** depth_scale(rate) == pytest.approx(math.e if rate > 1 else 1 / math.e)

    def test_limits(self) -> None:
        assert depth_scale(1.0) == math.inf
        assert depth_scale(0.0) == 0.0

    @pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
    def test_mistakes(self, rate: float) -> None:
        with pytest.raises(TheoryError, match="a rate is a finite number ≥ 0"):
            depth_scale(rate)


class TestFixedPoints:
    @pytest.mark.parametrize("sigma_w2", TANH)
    def test_reference_figures_of_tanh(self, sigma_w2: float) -> None:
        q, chi_1, c = TANH[sigma_w2]
        point = fixed_point("tanh", sigma_w2, 0.05)
        if q is not None:
            assert point.q == pytest.approx(q, abs=1e-5)
        assert point.chi_1 == pytest.approx(chi_1, abs=1e-5)
        assert point.c == pytest.approx(c, abs=1e-5)

    @pytest.mark.parametrize("start", [1e-3, 50.0])
    @pytest.mark.parametrize(
        ("name", "w", "b"), [("tanh", 1.5, 0.05), ("gelu", 1.0, 0.3), ("sigmoid", 1 / 3, 0.0)]
    )
    def test_iterating_the_map_arrives_there(self, name: str, w: float, b: float, start: float) -> None:
        q = start
        for _ in range(200):
            q = q_map(name, q, w, b)
        assert q_star(name, w, b, start=start) == pytest.approx(q, rel=1e-9)

    def test_iterating_the_correlation_arrives_there(self) -> None:
        q, c = q_star("tanh", 3.0, 0.05), 0.35
        for _ in range(50):
            c = c_map("tanh", c, q, 3.0, 0.05)
        found = c_star("tanh", 3.0, 0.05)
        assert found == pytest.approx(c, abs=1e-3)
        assert c_map("tanh", found, q, 3.0, 0.05) == pytest.approx(found, abs=1e-12)

    def test_relu_at_its_critical_point_keeps_any_q(self) -> None:
        assert q_star("relu", 2.0, start=3.7) == 3.7
        assert fixed_point("relu", 2.0).chi_1 == pytest.approx(1.0)

    def test_relu_dies_out_below_and_grows_above(self) -> None:
        assert q_star("relu", 1.9) == 0.0
        assert q_star("relu", 2.1) == math.inf
        assert fixed_point("relu", 1.9).chi_1 == pytest.approx(0.95)

    def test_relu_with_a_bias_settles_in_closed_form(self) -> None:
        assert q_star("relu", 1.0, 0.3) == pytest.approx(0.6, rel=1e-12)

    def test_tanh_dies_out_without_a_bias(self) -> None:
        assert q_star("tanh", 0.9) == 0.0
        assert fixed_point("tanh", 0.9).chi_1 == pytest.approx(0.9)

    def test_no_bias_leaves_odd_chaotic_nets_uncorrelated(self) -> None:
        assert c_star("tanh", 3.0) == pytest.approx(0.0, abs=1e-12)

    def test_just_inside_chaos_correlations_are_1_to_what_can_be_told(self) -> None:
        point = edge_of_chaos("tanh", sigma_w2=1.5)
        barely = 1.5 * (1 + 1e-11)
        assert chi("tanh", q_star("tanh", barely, point.sigma_b2), barely) > 1.0
        assert c_star("tanh", barely, point.sigma_b2) == 1.0

    def test_trainable_depth_is_six_depth_scales(self) -> None:
        assert trainable_depth("tanh", 1.3, 0.05) == pytest.approx(-6 / math.log(0.8801635), rel=1e-6)
        point = fixed_point("tanh", 4.0, 0.05)
        assert point.chi_c == pytest.approx(chi("tanh", point.q, 4.0, point.c))
        assert point.correlation_depth_scale == depth_scale(point.chi_c)
        assert point.gradient_depth_scale == depth_scale(point.chi_1)

    def test_unbounded_growth_has_no_fixed_point(self) -> None:
        with pytest.raises(
            TheoryError, match=r"relu with sigma_w2 = 3.*q grows without bound.*smaller sigma_w2"
        ):
            fixed_point("relu", 3.0)


class TestMistakes:
    @pytest.mark.parametrize("bad", [{"q": -1.0}, {"sigma_w2": math.nan}, {"sigma_b2": -0.1}])
    def test_variances(self, bad: dict[str, float]) -> None:
        arguments = {"q": 1.0, "sigma_w2": 1.0, "sigma_b2": 0.0} | bad
        with pytest.raises(TheoryError, match=f"{next(iter(bad))} is a variance, a finite number ≥ 0"):
            q_map("tanh", **arguments)

    def test_a_dead_layer_has_no_correlation(self) -> None:
        with pytest.raises(TheoryError, match="the next layer is constantly 0"):
            c_map("tanh", 0.5, 0.0, 1.0)

    def test_sensitivity_at_zero(self) -> None:
        with pytest.raises(TheoryError, match="needs q and q' above 0, got q = 0"):
            q_sensitivity("tanh", 0.0, 1.0, 0.1)

    def test_start_at_zero(self) -> None:
        with pytest.raises(TheoryError, match="starts from a q above 0"):
            q_star("tanh", 1.0, start=0.0)
