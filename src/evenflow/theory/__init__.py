"""Mean-field theory of gradients in wide random nets, with numpy and scipy only.

    from evenflow.theory import chain_profile, edge_of_chaos, moments

    moments("gelu").batch_norm_rate                       # 1.3188: BatchNorm explodes
    edge_of_chaos("tanh", sigma_w2=1.5).sigma_b2          # 0.015818: gradients keep their size
    chain_profile("sigmoid", depth=20, width=128, sigma_w2=1.0).log10_ratio      # −11.96

Activations go by PyTorch's names; any other is
``Activation.from_callable(lambda x: x * np.tanh(x))``. Weight variances are
given as σ_w² = fan_in · Var(W), bias variances as σ_b² = Var(b); rates are
factors on E‖gradient‖² per layer or time step, going backwards.
"""

from evenflow.theory.activation import Activation
from evenflow.theory.activation_moments import Moments, moments
from evenflow.theory.activations import ActivationLike, activation_names, as_activation, get_activation
from evenflow.theory.chains import ChainProfile, chain_profile
from evenflow.theory.critical import CriticalPoint, critical_point, edge_of_chaos
from evenflow.theory.errors import TheoryError
from evenflow.theory.fixed_points import FixedPoint, c_star, fixed_point, q_star, trainable_depth
from evenflow.theory.gaussian import expect, expect_pair
from evenflow.theory.inits import (
    DeepNorm,
    WeightInit,
    calculate_gain,
    deepnorm,
    depth_scaled,
    fans,
    kaiming,
    lecun,
    normal,
    orthogonal,
    torch_default,
    torch_default_bias_variance,
    trunc_normal,
    uniform,
    xavier,
)
from evenflow.theory.maps import c_map, chi, covariance_map, depth_scale, q_map, q_sensitivity
from evenflow.theory.norms import linear_batch_norm_rate, norm_rate
from evenflow.theory.recurrent import GatedRate, gru_rate, lstm_rate, lstm_spectral_radius, rnn_rate
from evenflow.theory.residual import ResidualProfile, residual_profile

__all__ = [
    "Activation",
    "ActivationLike",
    "ChainProfile",
    "CriticalPoint",
    "DeepNorm",
    "FixedPoint",
    "GatedRate",
    "Moments",
    "ResidualProfile",
    "TheoryError",
    "WeightInit",
    "activation_names",
    "as_activation",
    "c_map",
    "c_star",
    "calculate_gain",
    "chain_profile",
    "chi",
    "covariance_map",
    "critical_point",
    "deepnorm",
    "depth_scale",
    "depth_scaled",
    "edge_of_chaos",
    "expect",
    "expect_pair",
    "fans",
    "fixed_point",
    "get_activation",
    "gru_rate",
    "kaiming",
    "lecun",
    "linear_batch_norm_rate",
    "lstm_rate",
    "lstm_spectral_radius",
    "moments",
    "norm_rate",
    "normal",
    "orthogonal",
    "q_map",
    "q_sensitivity",
    "q_star",
    "residual_profile",
    "rnn_rate",
    "torch_default",
    "torch_default_bias_variance",
    "trainable_depth",
    "trunc_normal",
    "uniform",
    "xavier",
]
