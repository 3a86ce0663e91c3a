"""Every registered activation against PyTorch's forward and autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from evenflow.theory import Activation
from evenflow.theory.activations import activation_names, as_activation, get_activation
from evenflow.theory.errors import TheoryError

FloatArray = npt.NDArray[np.float64]
TorchFunction = Callable[[torch.Tensor], torch.Tensor]

CASES: dict[str, tuple[dict[str, Any], TorchFunction]] = {
    "identity": ({}, torch.nn.Identity()),
    "relu": ({}, F.relu),
    "leaky_relu": ({"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    "prelu": ({"init": 0.1}, lambda x: F.prelu(x, torch.tensor(0.1, dtype=x.dtype))),
    "rrelu": ({"lower": 0.1, "upper": 0.5}, lambda x: F.rrelu(x, 0.1, 0.5, training=False)),
    "relu6": ({}, F.relu6),
    "hardtanh": ({"min_val": -0.5, "max_val": 2.0}, lambda x: F.hardtanh(x, -0.5, 2.0)),
    "hardsigmoid": ({}, F.hardsigmoid),
    "threshold": ({"threshold": 0.3, "value": -1.0}, lambda x: F.threshold(x, 0.3, -1.0)),
    "hardshrink": ({"lambd": 0.7}, lambda x: F.hardshrink(x, 0.7)),
    "softshrink": ({"lambd": 0.7}, lambda x: F.softshrink(x, 0.7)),
    "tanh": ({}, torch.tanh),
    "sigmoid": ({}, torch.sigmoid),
    "softsign": ({}, F.softsign),
    "erf": ({}, torch.erf),
    "sin": ({}, torch.sin),
    "cos": ({}, torch.cos),
    "gelu": ({"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    "silu": ({}, F.silu),
    "mish": ({}, F.mish),
    "softplus": ({"beta": 2.0, "threshold": 15.0}, lambda x: F.softplus(x, 2.0, 15.0)),
    "logsigmoid": ({}, F.logsigmoid),
    "tanhshrink": ({}, F.tanhshrink),
    "hardswish": ({}, F.hardswish),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "celu": ({"alpha": 0.7}, lambda x: F.celu(x, 0.7)),
    "selu": ({}, F.selu),
}
DEFAULTS: dict[str, TorchFunction] = {
    "leaky_relu": F.leaky_relu,
    "prelu": torch.nn.PReLU(dtype=torch.float64),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "hardtanh": F.hardtanh,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "elu": F.elu,
    "celu": F.celu,
}
FLOAT32_CONSTANTS = ("hardsigmoid", "celu(alpha=0.7)")
"""PyTorch keeps 1/6 and 1/alpha of these in float32, also for float64 tensors."""
GRID = np.concatenate([np.linspace(-60, 60, 2401), np.linspace(-1, 1, 334), [-1e-9, 1e-9, 0.0, -0.0]])


def everything() -> Iterator[tuple[str, Activation, TorchFunction]]:
    yield from ((name, get_activation(name, **settings), f) for name, (settings, f) in CASES.items())
    yield from ((f"{name} default", get_activation(name), f) for name, f in DEFAULTS.items())


ALL = list(everything())


def test_every_registered_activation_is_tested() -> None:
    assert set(CASES) == set(activation_names())


@pytest.mark.parametrize(("phi", "torch_f"), [c[1:] for c in ALL], ids=[c[0] for c in ALL])
class TestAgainstTorch:
    def grid(self, phi: Activation) -> FloatArray:
        return np.concatenate([GRID, phi.breakpoints])

    def torch_both(self, torch_f: TorchFunction, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        y = torch_f(leaf)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
        return y.detach().numpy(), slope.numpy()

    def test_value_and_derivative(self, phi: Activation, torch_f: TorchFunction) -> None:
        x = self.grid(phi)
        y, slope = self.torch_both(torch_f, x)
        rtol = 1e-6 if phi.name in FLOAT32_CONSTANTS else 1e-12
        np.testing.assert_allclose(phi(x), y, rtol=rtol, atol=1e-13)
        np.testing.assert_allclose(phi.derivative(x), slope, rtol=rtol, atol=1e-13)

    def test_breakpoints_are_where_a_search_finds_them(self, phi: Activation, torch_f: TorchFunction) -> None:
        found = Activation.from_callable(phi.f).breakpoints
        np.testing.assert_allclose(found, phi.breakpoints, atol=1e-9)

    def test_numerical_derivative(self, phi: Activation, torch_f: TorchFunction) -> None:
        """from_callable knows only the torch function, kinks included, and keeps its stated 1e-11."""
        seen = Activation.from_callable(lambda x: torch_f(torch.from_numpy(x)).detach().numpy(), "seen")
        x = self.grid(phi)
        x = x[np.min(np.abs(np.subtract.outer(x, [*phi.breakpoints, np.inf])), axis=1) > 1e-9]
        error = np.abs(seen.derivative(x) - phi.derivative(x))
        assert np.max(error / np.maximum(1.0, np.abs(phi.derivative(x)))) < 1e-11


def test_numerical_derivative_is_one_sided_at_a_kink() -> None:
    seen = Activation.from_callable(lambda x: np.abs(x - 0.37) * 2, "vee")
    assert seen.breakpoints == (0.37,)
    x = np.array([0.37 - 1e-9, 0.37, 0.37 + 1e-9])
    np.testing.assert_allclose(seen.derivative(x), [-2, -2, 2], atol=1e-6)
    np.testing.assert_allclose(seen.derivative(np.array([0.36, 0.37, 0.38])), [-2, -2, 2], atol=1e-12)


@pytest.mark.parametrize("steepness", [10.0, 1e3])
def test_numerical_derivative_of_a_steep_function(steepness: float) -> None:
    seen = Activation.from_callable(lambda x: np.tanh(steepness * x))
    x = np.linspace(-5, 5, 2001) / steepness
    error = np.abs(seen.derivative(x) - steepness / np.cosh(steepness * x) ** 2)
    assert error.max() < 1e-11 * steepness


def test_given_derivative_and_breakpoints_are_taken_as_they_are() -> None:
    phi = Activation.from_callable(np.abs, derivative=np.sign, breakpoints=[0])
    assert phi.name == "absolute"
    assert phi.derivative is np.sign
    assert phi.breakpoints == (0.0,)


class TestLookUp:
    @pytest.mark.parametrize("name", ["leaky_relu", "LeakyReLU", "LEAKY_RELU", "leakyrelu"])
    def test_both_spellings(self, name: str) -> None:
        assert get_activation(name).name == "leaky_relu"

    def test_module_names_of_torch(self) -> None:
        for name in ("SiLU", "GELU", "Hardswish", "LogSigmoid", "ReLU6", "Identity", "Softsign", "CELU"):
            assert isinstance(getattr(torch.nn, name), type)
            assert get_activation(name).name == name.lower()

    def test_settings_show_in_the_name(self) -> None:
        assert get_activation("leaky_relu", negative_slope=0.2).name == "leaky_relu(negative_slope=0.2)"

    def test_as_activation(self) -> None:
        assert as_activation("tanh").name == "tanh"
        phi = get_activation("relu")
        assert as_activation(phi) is phi

    def test_unknown_name(self) -> None:
        with pytest.raises(
            TheoryError, match=r"no activation is called 'relux'; known are celu, cos, .*from_callable"
        ):
            get_activation("relux")

    def test_unknown_setting(self) -> None:
        with pytest.raises(TheoryError, match=r"leaky_relu\(negative_slope.*=.*0.01\) got \{'slope': 0.2\}"):
            get_activation("leaky_relu", slope=0.2)

    def test_a_bare_callable_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(
            TheoryError, match=r"got ufunc\. Wrap a numpy function with Activation.from_callable"
        ):
            as_activation(np.tanh)  # type: ignore[arg-type]

    def test_gelu_form(self) -> None:
        with pytest.raises(TheoryError, match='approximate is "none" or "tanh"'):
            get_activation("gelu", approximate="quick")


class TestFromCallableMistakes:
    def test_float32(self) -> None:
        with pytest.raises(TheoryError, match=r"single cannot be used.*rough nearly everywhere.*float64"):
            Activation.from_callable(lambda x: np.tanh(x.astype(np.float32)), "single")

    def test_not_finite(self) -> None:
        with pytest.raises(TheoryError, match="log cannot be used as an activation: the function is nan at"):
            Activation.from_callable(np.log)
