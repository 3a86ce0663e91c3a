"""What the standard initialisers give: the variance of a weight, and σ_w² = fan_in · Var(W).

σ_w² is what signals feel going forwards and what mean-field theory is written
in; fan_out · Var(W) is its counterpart for a linear net going backwards. Shapes
are PyTorch's, (out, in, *kernel), as are the names of the initialisers; where a
uniform and a normal form share their variance there is one function for both.

References:
    X. Glorot & Y. Bengio, AISTATS 2010, eq. 12 and 16. K. He et al., ICCV 2015,
    eq. 10 and 14. Y. LeCun et al., "Efficient BackProp" 1998, section 4.6. A. Saxe et
    al., ICLR 2014 (orthogonal). H. Wang et al., "DeepNet", 2022, fig. 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import special

from evenflow.theory.errors import TheoryError


@dataclass(frozen=True, slots=True)
class WeightInit:
    """The distribution of the entries of one weight.

    Attributes:
        name: The initialiser.
        variance: Var(W), per entry.
        fan_in: Entries that one output sums over.
        fan_out: Outputs that one input reaches.
        mean: E W; theory of random nets assumes 0.
        orthogonal: Whether rows (or columns) are orthogonal to each other, which
            leaves variances alone but takes away most of their scatter.
    """

    name: str
    variance: float
    fan_in: int
    fan_out: int
    mean: float = 0.0
    orthogonal: bool = False

    @property
    def std(self) -> float:
        """Standard deviation per entry."""
        return math.sqrt(self.variance)

    @property
    def sigma_w2(self) -> float:
        """σ_w² = fan_in · Var(W)."""
        return self.fan_in * self.variance


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight in PyTorch's layout, as its initialisers count them.

    Args:
        shape: (out, in) for a linear layer, (out, in/groups, *kernel) for a
            convolution. With groups fan_in is right and fan_out counts all
            groups; the weight of a transposed convolution, (in, out/groups,
            *kernel), is taken at face value, so that the two are swapped.

    Raises:
        TheoryError: Fewer than two dimensions, or an empty one.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise TheoryError(
            f"a weight has a shape (out, in, *kernel) without zeros, got {tuple(shape)}; "
            "biases and norm scales have no fans"
        )
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """PyTorch's recommended gain, ``torch.nn.init.calculate_gain``.

    A convention and not always the critical value: for tanh it is 5/3, where
    keeping the activations' mean square at q = 1 takes 1.59 and keeping
    gradients takes 1.47 (:class:`~evenflow.theory.activation_moments.Moments`).

    Args:
        nonlinearity: PyTorch's name, e.g. ``"leaky_relu"`` or ``"conv2d"``.
        param: Negative slope of ``leaky_relu``, by default 0.01.

    Raises:
        TheoryError: PyTorch recommends no gain for it.
    """
    if nonlinearity in _UNIT_GAIN:
        return 1.0
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise TheoryError(
            f"PyTorch recommends no gain for {nonlinearity!r}, only for {', '.join(sorted(_GAINS))}, "
            "leaky_relu and linear layers. Take moments(activation).gain."
        )
    return _GAINS[nonlinearity]


_UNIT_GAIN = frozenset(
    ["linear", "sigmoid"] + [f"conv{transposed}{d}d" for d in (1, 2, 3) for transposed in ("", "_transpose")]
)
_GAINS = {"tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}


def xavier(shape: Sequence[int], gain: float = 1.0) -> WeightInit:
    """``xavier_uniform_`` and ``xavier_normal_`` (Glorot): 2 gain²/(fan_in + fan_out)."""
    fan_in, fan_out = fans(shape)
    return WeightInit("xavier", 2.0 * gain**2 / (fan_in + fan_out), fan_in, fan_out)


def kaiming(
    shape: Sequence[int],
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
) -> WeightInit:
    """``kaiming_uniform_`` and ``kaiming_normal_`` (He): gain²/fan.

    Args:
        shape: Of the weight, (out, in, *kernel).
        a: Negative slope, used with ``leaky_relu`` only, as in PyTorch.
        mode: Which fan; ``fan_in`` keeps activations, ``fan_out`` gradients.
        nonlinearity: As in :func:`calculate_gain`.
    """
    if mode not in ("fan_in", "fan_out"):
        raise TheoryError(f"mode is 'fan_in' or 'fan_out', got {mode!r}")
    fan_in, fan_out = fans(shape)
    fan = fan_in if mode == "fan_in" else fan_out
    return WeightInit("kaiming", calculate_gain(nonlinearity, a) ** 2 / fan, fan_in, fan_out)


def lecun(shape: Sequence[int]) -> WeightInit:
    """LeCun, uniform or normal: 1/fan_in, so that σ_w² = 1. What SELU asks for."""
    fan_in, fan_out = fans(shape)
    return WeightInit("lecun", 1.0 / fan_in, fan_in, fan_out)


def torch_default(shape: Sequence[int]) -> WeightInit:
    """What ``nn.Linear`` and ``nn.Conv*`` start with: U(±1/√fan_in), σ_w² = 1/3 whatever the activation.

    PyTorch writes it as ``kaiming_uniform_(a=√5)``.
    """
    return replace(kaiming(shape, a=math.sqrt(5.0)), name="torch_default")


def torch_default_bias_variance(shape: Sequence[int]) -> float:
    """σ_b² of the bias beside a weight of this shape, U(±1/√fan_in): 1/(3 fan_in)."""
    return 1.0 / (3.0 * fans(shape)[0])


def normal(shape: Sequence[int], std: float = 1.0, mean: float = 0.0) -> WeightInit:
    """``normal_``: N(mean, std²)."""
    if not (math.isfinite(std) and std >= 0.0):
        raise TheoryError(f"normal needs a finite std ≥ 0, got {std}")
    return WeightInit("normal", std**2, *fans(shape), mean=mean)


def uniform(shape: Sequence[int], a: float = 0.0, b: float = 1.0) -> WeightInit:
    """``uniform_``: U(a, b), variance (b − a)²/12. PyTorch's default 0 … 1 has mean ½."""
    if not a <= b:
        raise TheoryError(f"uniform needs a ≤ b, got a = {a}, b = {b}")
    return WeightInit("uniform", (b - a) ** 2 / 12.0, *fans(shape), mean=(a + b) / 2.0)


def trunc_normal(
    shape: Sequence[int], mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> WeightInit:
    """``trunc_normal_``: N(mean, std²) cut off at a and b, with its true mean and variance.

    As in PyTorch a and b are values, not multiples of std: at std = 0.02 the
    default ±2 cuts nothing. At std = 1 it leaves a variance of 0.774.

    References:
        N. Johnson et al., "Continuous univariate distributions" 1 (1994), ch. 13.
    """
    if not (std > 0.0 and a < b):
        raise TheoryError(f"trunc_normal needs std > 0 and a < b, got std = {std}, a = {a}, b = {b}")
    low, high = (a - mean) / std, (b - mean) / std
    mass = special.ndtr(high) - special.ndtr(low) if low < 0 else special.ndtr(-low) - special.ndtr(-high)
    if mass < 1e-12:
        raise TheoryError(f"trunc_normal keeps almost nothing of N({mean}, {std}²) between {a} and {b}")
    at_low, at_high = (math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi) for x in (low, high))
    shift = (at_low - at_high) / mass
    variance = 1.0 + (low * at_low - high * at_high) / mass - shift**2
    return WeightInit("trunc_normal", std**2 * float(variance), *fans(shape), mean=mean + std * float(shift))


def orthogonal(shape: Sequence[int], gain: float = 1.0) -> WeightInit:
    """``orthogonal_``: of the weight as a matrix (out, in · kernel), rows or columns orthogonal, length gain.

    Its entries have variance gain²/max(out, in · kernel): σ_w² is gain² unless
    the layer widens.
    """
    fan_in, fan_out = fans(shape)
    return WeightInit("orthogonal", gain**2 / max(shape[0], fan_in), fan_in, fan_out, orthogonal=True)


def depth_scaled(init: WeightInit, residual_branches: int) -> WeightInit:
    """An initialiser scaled down by 1/√branches, for the last weight of each residual branch.

    With as many branches the residual stream only doubles its variance. A
    transformer of L blocks has 2L.

    References:
        A. Radford et al., "Language models are unsupervised multitask learners"
        (GPT-2) 2019, section 2.3.
    """
    if residual_branches < 1:
        raise TheoryError(f"residual_branches is at least 1, got {residual_branches}")
    return replace(init, name=f"{init.name}, depth-scaled", variance=init.variance / residual_branches)


@dataclass(frozen=True, slots=True)
class DeepNorm:
    """Constants of a DeepNorm transformer, LayerNorm(alpha · x + f(x)).

    Attributes:
        alpha: Weight of the skip.
        beta: Xavier gain of the feed-forward, value and output projections;
            query and key keep gain 1.
    """

    alpha: float
    beta: float


def deepnorm(layers: int) -> DeepNorm:
    """DeepNorm for an encoder-only or decoder-only transformer: α = (2N)^¼, β = (8N)^−¼.

    Args:
        layers: Number of blocks N (attention and feed-forward together are one).

    References:
        H. Wang et al., "DeepNet: scaling transformers to 1,000 layers", 2022, fig. 2.
    """
    if layers < 1:
        raise TheoryError(f"a transformer has at least 1 layer, got {layers}")
    return DeepNorm(alpha=(2.0 * layers) ** 0.25, beta=(8.0 * layers) ** -0.25)
