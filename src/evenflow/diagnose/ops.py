"""Families of ops, by PyTorch's own names, and what each does to scale.

An op is read by its name alone, so predicted and measured Flows, of any PyTorch
version, are judged alike. An op that is in no family is left out of account,
never guessed.
"""

from __future__ import annotations

WEIGHTED = frozenset(
    {
        "addmm",
        "mm",
        "addmv",
        "mv",
        "linear",
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "cudnn_convolution",
        "mkldnn_convolution",
        "embedding",
        "embedding_bag",
    }
)
"""Maps by a weight: what people count as layers."""

RECTIFIERS = frozenset({"relu", "threshold", "clamp_min", "leaky_relu", "_prelu_kernel", "rrelu_with_noise"})
"""Zero, or a fixed slope, on either side of zero; they pass a change of scale on."""

SQUASHING_SLOPE = {"sigmoid": 0.25, "tanh": 1.0, "hardsigmoid": 1 / 6, "erf": 1.128379, "softsign": 1.0}
"""Bounded, monotone functions, and their largest slope (of erf: 2/√π)."""

SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
"""Softmax; with logarithm it is ``_log_softmax``."""

SMOOTH = frozenset(
    {"gelu", "silu", "mish", "elu", "celu", "softplus", "hardswish", "hardtanh", "log_sigmoid_forward"}
)
"""Other activation functions of one input."""

BACKWARD_GAIN = {
    "relu": 1.414214,
    "threshold": 1.414214,
    "clamp_min": 1.414214,
    "leaky_relu": 1.414143,
    "_prelu_kernel": 1.371989,
    "rrelu_with_noise": 1.376117,
    "gelu": 1.481114,
    "silu": 1.623320,
    "mish": 1.444755,
    "elu": 1.223429,
    "softplus": 1.846229,
    "hardswish": 1.670076,
}
"""The factor of the weights behind φ that keeps a gradient's norm: (E φ'(z)²)^−½ for z ~ N(0,1).

Of rectifiers √2/√(1+a²) (He 2015, eq. 15; slope a = .01, of PReLU .25, of RReLU
the mean of a² over 1/8 … 1/3); of the others by quadrature. An
activation that is not listed is made for weights of factor 1 (Glorot 2010):
what its slope loses below 1 is its own doing.
"""

NORMS = frozenset(
    {
        "native_batch_norm",
        "cudnn_batch_norm",
        "miopen_batch_norm",
        "_native_batch_norm_legit",
        "_batch_norm_with_update",
        "batch_norm",
        "native_layer_norm",
        "layer_norm",
        "native_group_norm",
        "group_norm",
        "_fused_rms_norm",
        "rms_norm",
    }
)
"""Normalisations in one op; they take away the scale of what they read."""

MEASURES_SCALE = frozenset({"rsqrt", "linalg_vector_norm", "norm", "std"})
"""Ops whose output is a scale to divide by, in normalisations that are spelled out."""

KEEPS_KIND = frozenset({"add", "clamp_min", "clamp", "expand", "sqrt", "reciprocal"})
"""What may lie between a scale and the division by it."""

AVERAGES = frozenset(
    {"mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"}
)
"""Means over k entries: the gradient's norm falls by √k, that of the signal's common part does not."""

PASSES_SCALE = (
    (WEIGHTED - {"embedding", "embedding_bag"})
    | RECTIFIERS
    | AVERAGES
    | {
        "abs", "add", "addcmul", "adaptive_max_pool2d", "bmm", "cat", "clamp", "constant_pad_nd", "div",
        "expand", "gather", "im2col", "index", "index_select", "masked_fill", "max",
        "max_pool2d_with_indices", "max_pool3d_with_indices", "mul", "native_dropout", "neg",
        "pixel_shuffle", "pow", "roll", "select", "slice", "split", "split_with_sizes", "sqrt", "stack",
        "sub", "sum", "unbind", "unfold", "unsafe_split", "upsample_bilinear2d", "upsample_nearest1d",
        "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "where",
    }
)  # fmt: skip
"""Ops after which a change of the input's scale is still nothing but a change of scale."""

LOSSES = frozenset(
    {
        "nll_loss_forward",
        "nll_loss2d_forward",
        "nll_loss_nd",
        "cross_entropy_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "kl_div",
        "soft_margin_loss",
        "multi_margin_loss",
        "multilabel_margin_loss_forward",
    }
)
"""Ops that compare an output with a target."""
