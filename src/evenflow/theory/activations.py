"""The field's activations, under PyTorch's names and settings.

Each factory takes the settings of the PyTorch function of that name and gives
an :class:`~evenflow.theory.activation.Activation`; tests compare value and
derivative, kinks included, with PyTorch's forward and autograd. What PyTorch
draws at random or learns is a fixed number here: ``rrelu`` has its evaluation
slope, ``prelu`` the slope that it starts from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from evenflow.theory.activation import Activation
from evenflow.theory.errors import TheoryError
from evenflow.theory.gaussian import Array

ActivationLike: TypeAlias = Activation | str
"""An :class:`Activation`, or the name of one in :func:`get_activation`."""

# ------------------------------------------------------------- piecewise linear


def identity() -> Activation:
    """φ(x) = x."""
    return Activation("identity", lambda x: x * 1.0, np.ones_like)


def relu() -> Activation:
    """max(0, x). Nair & Hinton 2010."""
    return Activation("relu", lambda x: np.maximum(x, 0.0), lambda x: (x > 0) * 1.0, (0.0,))


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """X for x > 0, slope · x below. Maas et al. 2013."""
    return Activation(
        _name("leaky_relu", negative_slope=(negative_slope, 0.01)),
        lambda x: np.where(x > 0, x, negative_slope * x),
        lambda x: np.where(x > 0, 1.0, negative_slope),
        (0.0,),
    )


def prelu(init: float = 0.25) -> Activation:
    """Leaky ReLU whose slope is learned, at its initial slope. He et al. 2015."""
    shape = leaky_relu(init)
    return Activation(_name("prelu", init=(init, 0.25)), shape.f, shape.derivative, (0.0,))


def rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Leaky ReLU with a random slope, in evaluation mode: the slope's mean. Xu et al. 2015."""
    shape = leaky_relu((lower + upper) / 2)
    return Activation(
        _name("rrelu", lower=(lower, 1 / 8), upper=(upper, 1 / 3)), shape.f, shape.derivative, (0.0,)
    )


def relu6() -> Activation:
    """min(max(0, x), 6). Krizhevsky 2010."""
    return Activation("relu6", lambda x: np.clip(x, 0.0, 6.0), lambda x: _inside(x, 0.0, 6.0), (0.0, 6.0))


def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    """X clipped to min_val … max_val."""
    return Activation(
        _name("hardtanh", min_val=(min_val, -1.0), max_val=(max_val, 1.0)),
        lambda x: np.clip(x, min_val, max_val),
        lambda x: _inside(x, min_val, max_val),
        (min_val, max_val),
    )


def hardsigmoid() -> Activation:
    """relu6(x + 3)/6. Courbariaux et al. 2015, in PyTorch's form."""
    return Activation(
        "hardsigmoid",
        lambda x: np.clip(x + 3, 0.0, 6.0) / 6,
        lambda x: _inside(x, -3.0, 3.0) / 6,
        (-3.0, 3.0),
    )


def threshold(threshold: float, value: float) -> Activation:
    """X above the threshold, ``value`` below."""
    return Activation(
        f"threshold(threshold={threshold:g}, value={value:g})",
        lambda x: np.where(x > threshold, x, value),
        lambda x: (x > threshold) * 1.0,
        (threshold,),
    )


def hardshrink(lambd: float = 0.5) -> Activation:
    """X where |x| > lambd, else 0."""
    return Activation(
        _name("hardshrink", lambd=(lambd, 0.5)),
        lambda x: np.where(np.abs(x) > lambd, x, 0.0),
        lambda x: (np.abs(x) > lambd) * 1.0,
        (-lambd, lambd),
    )


def softshrink(lambd: float = 0.5) -> Activation:
    """X moved towards 0 by lambd, 0 within."""
    return Activation(
        _name("softshrink", lambd=(lambd, 0.5)),
        lambda x: x - np.clip(x, -lambd, lambd),
        lambda x: (np.abs(x) > lambd) * 1.0,
        (-lambd, lambd),
    )


# ----------------------------------------------------------------------- bounded


def tanh() -> Activation:
    """Tanh x."""
    return Activation("tanh", np.tanh, _sech2)


def sigmoid() -> Activation:
    """1/(1 + exp(−x))."""
    return Activation("sigmoid", special.expit, lambda x: special.expit(x) * special.expit(-x))


def softsign() -> Activation:
    """x/(1 + |x|), whose second derivative jumps at 0. Glorot & Bengio 2010."""
    return Activation("softsign", lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2, (0.0,))


def erf() -> Activation:
    """Erf x."""
    return Activation("erf", special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x))


def sin() -> Activation:
    """Sin x. Sitzmann et al. 2020 (SIREN)."""
    return Activation("sin", np.sin, np.cos)


def cos() -> Activation:
    """Cos x."""
    return Activation("cos", np.cos, lambda x: -np.sin(x))


# -------------------------------------------------------------- smooth rectifiers


def gelu(approximate: Literal["none", "tanh"] = "none") -> Activation:
    """X · P(z < x), z ~ N(0, 1), or its tanh form. Hendrycks & Gimpel 2016."""
    if approximate == "none":
        return Activation("gelu", lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * _normal(x))
    if approximate != "tanh":
        raise TheoryError(f'gelu: approximate is "none" or "tanh", got {approximate!r}')
    scale, cubic = math.sqrt(2 / math.pi), 0.044715

    def inner(x: Array) -> Array:
        return scale * (x + cubic * x**3)

    return Activation(
        "gelu(approximate='tanh')",
        lambda x: 0.5 * x * (1 + np.tanh(inner(x))),
        lambda x: (
            0.5 * (1 + np.tanh(inner(x))) + 0.5 * x * _sech2(inner(x)) * scale * (1 + 3 * cubic * x * x)
        ),
    )


def silu() -> Activation:
    """X · sigmoid(x), also called Swish. Elfwing et al. 2018, Ramachandran et al. 2017."""
    return Activation(
        "silu",
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
    )


def mish() -> Activation:
    """X · tanh(softplus(x)). Misra 2019."""

    def soft(x: Array) -> Array:
        return np.logaddexp(0.0, x)

    return Activation(
        "mish",
        lambda x: x * np.tanh(soft(x)),
        lambda x: np.tanh(soft(x)) + x * _sech2(soft(x)) * special.expit(x),
    )


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """ln(1 + exp(beta x))/beta; x itself where beta x > threshold. Dugas et al. 2001."""
    return Activation(
        _name("softplus", beta=(beta, 1.0), threshold=(threshold, 20.0)),
        lambda x: np.where(beta * x > threshold, x, np.logaddexp(0.0, beta * x) / beta),
        lambda x: np.where(beta * x > threshold, 1.0, special.expit(beta * x)),
        (threshold / beta,),
    )


def logsigmoid() -> Activation:
    """Log of the sigmoid, −softplus(−x)."""
    return Activation("logsigmoid", special.log_expit, lambda x: special.expit(-x))


def tanhshrink() -> Activation:
    """X − tanh x."""
    return Activation("tanhshrink", lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2)


def hardswish() -> Activation:
    """X · relu6(x + 3)/6. Howard et al. 2019."""
    return Activation(
        "hardswish",
        lambda x: x * np.clip(x + 3, 0.0, 6.0) / 6,
        lambda x: np.where(x <= -3, 0.0, np.where(x < 3, x / 3 + 0.5, 1.0)),
        (-3.0, 3.0),
    )


def elu(alpha: float = 1.0) -> Activation:
    """X for x > 0, alpha (exp x − 1) below. Clevert et al. 2016."""
    return _exponential(_name("elu", alpha=(alpha, 1.0)), alpha, 1.0, 1.0)


def celu(alpha: float = 1.0) -> Activation:
    """X for x > 0, alpha (exp(x/alpha) − 1) below. Barron 2017."""
    return _exponential(_name("celu", alpha=(alpha, 1.0)), alpha, 1 / alpha, 1.0)


def selu() -> Activation:
    """Scaled ELU, made so that mean 0 and variance 1 are a fixed point. Klambauer et al. 2017, eq. 14."""
    return _exponential("selu", 1.6732632423543772848170429916717, 1.0, 1.0507009873554804934193349852946)


# ------------------------------------------------------------------------ look-up

_FACTORIES: dict[str, Callable[..., Activation]] = {
    factory.__name__: factory
    for factory in (
        identity, relu, leaky_relu, prelu, rrelu, relu6, hardtanh, hardsigmoid, threshold, hardshrink,
        softshrink, tanh, sigmoid, softsign, erf, sin, cos, gelu, silu, mish, softplus, logsigmoid,
        tanhshrink, hardswish, elu, celu, selu,
    )
}  # fmt: skip
_BY_KEY = {name.replace("_", ""): factory for name, factory in _FACTORIES.items()} | {
    "swish": silu,
    "linear": identity,
}


def get_activation(name: str, **settings: float | str) -> Activation:
    """The activation of that name.

    Args:
        name: As PyTorch spells the function or the module: ``"leaky_relu"`` or
            ``"LeakyReLU"``.
        **settings: The PyTorch function's own, e.g. ``negative_slope=0.2``.

    Raises:
        TheoryError: The name or a setting is not known.
    """
    factory = _BY_KEY.get(name.lower().replace("_", ""))
    if factory is None:
        raise TheoryError(
            f"no activation is called {name!r}; known are {', '.join(sorted(_FACTORIES))}. "
            "Make your own with Activation.from_callable(f)."
        )
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as error:
        raise TheoryError(
            f"{factory.__name__}{inspect.signature(factory).replace(return_annotation=inspect.Signature.empty)}"
            f" got {settings}: {error}"
        ) from None
    return factory(**settings)


def activation_names() -> tuple[str, ...]:
    """Names that :func:`get_activation` knows, sorted."""
    return tuple(sorted(_FACTORIES))


def as_activation(value: ActivationLike) -> Activation:
    """An activation as it is, or the one of that name.

    Raises:
        TheoryError: The value is neither.
    """
    if isinstance(value, Activation):
        return value
    if isinstance(value, str):
        return get_activation(value)
    raise TheoryError(
        f"an activation is an Activation or a name such as 'tanh', got {type(value).__name__}. "
        "Wrap a numpy function with Activation.from_callable(f)."
    )


# ------------------------------------------------------------------------- pieces


def _exponential(name: str, alpha: float, rate: float, scale: float) -> Activation:
    """Scale · (x for x > 0, alpha (exp(rate x) − 1) below): ELU, CELU and SELU."""
    return Activation(
        name,
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(rate * np.minimum(x, 0.0))),
        lambda x: scale * np.where(x > 0, 1.0, alpha * rate * np.exp(rate * np.minimum(x, 0.0))),
        (0.0,),
    )


def _inside(x: Array, low: float, high: float) -> Array:
    return np.asarray((x > low) & (x < high), dtype=np.float64)


def _sech2(x: Array) -> Array:
    """1 − tanh² x, without the cancellation at large x."""
    decay = np.exp(-2 * np.abs(x))
    return np.asarray(4 * decay / (1 + decay) ** 2)


def _normal(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _name(name: str, **settings: tuple[float, float]) -> str:
    """The name with each setting (value, default) that differs from its default."""
    changed = [f"{key}={value:g}" for key, (value, default) in settings.items() if value != default]
    return f"{name}({', '.join(changed)})" if changed else name
