"""Variances of initialisers against draws of the real torch.nn.init on real modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch.nn import init as torch_init

from evenflow.theory import inits
from evenflow.theory.errors import TheoryError
from evenflow.theory.inits import WeightInit

Draw = Callable[[torch.Tensor, torch.Generator], object]


def linear() -> torch.nn.Module:
    return torch.nn.Linear(400, 150)


def widening() -> torch.nn.Module:
    return torch.nn.Linear(150, 400)


def conv() -> torch.nn.Module:
    return torch.nn.Conv2d(24, 60, (5, 3))


def grouped() -> torch.nn.Module:
    return torch.nn.Conv1d(64, 128, 9, groups=4)


MODULES = [linear, widening, conv, grouped]

CASES: dict[str, tuple[Callable[[torch.Size], WeightInit], Draw]] = {
    "xavier_uniform": (
        lambda shape: inits.xavier(shape, gain=1.3),
        lambda w, g: torch_init.xavier_uniform_(w, gain=1.3, generator=g),
    ),
    "xavier_normal": (inits.xavier, lambda w, g: torch_init.xavier_normal_(w, generator=g)),
    "kaiming_uniform": (
        lambda shape: inits.kaiming(shape, nonlinearity="relu"),
        lambda w, g: torch_init.kaiming_uniform_(w, nonlinearity="relu", generator=g),
    ),
    "kaiming_normal_fan_out": (
        lambda shape: inits.kaiming(shape, a=0.3, mode="fan_out"),
        lambda w, g: torch_init.kaiming_normal_(w, a=0.3, mode="fan_out", generator=g),
    ),
    "orthogonal": (
        lambda shape: inits.orthogonal(shape, gain=0.7),
        lambda w, g: torch_init.orthogonal_(w, gain=0.7, generator=g),
    ),
    "normal": (
        lambda shape: inits.normal(shape, std=0.02),
        lambda w, g: torch_init.normal_(w, std=0.02, generator=g),
    ),
    "uniform": (
        lambda shape: inits.uniform(shape, -0.2, 0.2),
        lambda w, g: torch_init.uniform_(w, -0.2, 0.2, generator=g),
    ),
    "trunc_normal": (
        lambda shape: inits.trunc_normal(shape, std=0.9),
        lambda w, g: torch_init.trunc_normal_(w, std=0.9, generator=g),
    ),
    "trunc_normal lopsided": (
        lambda shape: inits.trunc_normal(shape, mean=0.1, std=0.5, a=-0.2, b=1.5),
        lambda w, g: torch_init.trunc_normal_(w, mean=0.1, std=0.5, a=-0.2, b=1.5, generator=g),
    ),
}


def forward_variance(module: torch.nn.Module, generator: torch.Generator) -> float:
    """Mean square of the module's outputs (bias off) for random inputs of variance 1."""
    torch.nn.init.zeros_(dict(module.named_parameters())["bias"])
    if isinstance(module, torch.nn.Linear):
        x = torch.randn(200, module.in_features, generator=generator)
    elif isinstance(module, torch.nn.Conv2d):
        x = torch.randn(4, module.in_channels, 20, 20, generator=generator)
    else:
        x = torch.randn(8, 64, 100, generator=generator)
    return float(module(x).detach().square().mean())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", MODULES)
def test_variance_of_draws_and_of_outputs(make: Callable[[], torch.nn.Module], case: str) -> None:
    """Var(W) within 4 % (18 432 or more entries), and σ_w² as the module's own forward feels it within 10 %.

    Weights with a mean of their own add fan_in · mean² to the latter.
    """
    expected, draw = CASES[case]
    module, generator = make(), torch.Generator().manual_seed(0)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    found = expected(weight.shape)
    draw(weight, generator)
    weight = weight.detach()
    assert float(weight.mean()) == pytest.approx(found.mean, abs=5 * found.std / math.sqrt(weight.numel()))
    assert float(weight.var()) == pytest.approx(found.variance, rel=0.04)
    felt = found.sigma_w2 + found.fan_in * found.mean**2
    assert forward_variance(module, generator) == pytest.approx(felt, rel=0.1)


@pytest.mark.parametrize("make", MODULES)
def test_fans_are_those_of_torch(make: Callable[[], torch.nn.Module]) -> None:
    weight = make().weight
    assert isinstance(weight, torch.Tensor)
    assert inits.fans(weight.shape) == torch_init._calculate_fan_in_and_fan_out(weight)


@pytest.mark.parametrize("make", MODULES)
def test_default_of_torch_modules(make: Callable[[], torch.nn.Module]) -> None:
    """Weight and bias as the constructor leaves them; 30 modules for the short bias."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [make() for _ in range(30)]
    weights = torch.stack([dict(m.named_parameters())["weight"].detach() for m in modules])
    biases = torch.stack([dict(m.named_parameters())["bias"].detach() for m in modules])
    shape = weights.shape[1:]
    found = inits.torch_default(shape)
    assert float(weights.var()) == pytest.approx(found.variance, rel=0.01)
    assert found.sigma_w2 == pytest.approx(1 / 3, rel=1e-12)
    assert float(biases.var()) == pytest.approx(inits.torch_default_bias_variance(shape), rel=0.06)
    assert float(weights.abs().max()) <= 1 / math.sqrt(found.fan_in)


def test_sigma_w2_of_the_textbook() -> None:
    shape = (256, 128)
    assert inits.lecun(shape).sigma_w2 == 1.0
    assert inits.kaiming(shape).sigma_w2 == pytest.approx(2.0)
    assert inits.xavier(shape).sigma_w2 == pytest.approx(2 / 3)
    assert inits.xavier((128, 128)).sigma_w2 == 1.0
    assert inits.orthogonal((128, 256)).sigma_w2 == 1.0
    assert inits.orthogonal(shape).sigma_w2 == 0.5
    assert inits.normal(shape, std=0.02).std == pytest.approx(0.02)


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
)
def test_gains_are_those_of_torch(name: Any) -> None:
    assert inits.calculate_gain(name) == torch_init.calculate_gain(name)
    if name == "leaky_relu":
        assert inits.calculate_gain(name, 0.3) == torch_init.calculate_gain(name, 0.3)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0.0, 1.0, -2.0, 2.0), (0.0, 0.02, -2.0, 2.0), (1.0, 0.5, -1.0, 1.2), (0.0, 1.0, 6.0, 6.5)],
)
def test_truncated_normal_against_scipy(mean: float, std: float, a: float, b: float) -> None:
    exact = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    found = inits.trunc_normal((3, 4), mean, std, a, b)
    assert found.variance == pytest.approx(exact.var(), rel=1e-9)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-9, abs=1e-15)


def test_depth_scaled_init_doubles_the_stream() -> None:
    """GPT-2's recipe: branches of unit variance add 1/(2L) each, 2L times."""
    init = inits.depth_scaled(inits.lecun((64, 64)), residual_branches=24)
    assert 1 + 24 * init.sigma_w2 == pytest.approx(2.0)
    assert init.name == "lecun, depth-scaled"


@pytest.mark.parametrize(
    ("layers", "alpha", "beta"),
    [
        (6, 1.8612, 0.3799),
        (12, 2.2134, 0.3195),
        (24, 2.6321, 0.2686),
        (100, 3.7606, 0.1880),
        (1000, 6.6874, 0.1057),
    ],
)
def test_deepnorm_reference_table(layers: int, alpha: float, beta: float) -> None:
    """Four decimals are printed, so absolute 5e-5."""
    found = inits.deepnorm(layers)
    assert found.alpha == pytest.approx(alpha, abs=5e-5)
    assert found.beta == pytest.approx(beta, abs=5e-5)


class TestMistakes:
    @pytest.mark.parametrize("shape", [(), (5,), (0, 3)])
    def test_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(
            TheoryError, match=r"a weight has a shape \(out, in, \*kernel\) without zeros, got"
        ):
            inits.xavier(shape)

    def test_gain(self) -> None:
        with pytest.raises(
            TheoryError, match=r"PyTorch recommends no gain for 'gelu', only for relu, selu, tanh"
        ):
            inits.kaiming((3, 3), nonlinearity="gelu")

    def test_mode(self) -> None:
        with pytest.raises(TheoryError, match="mode is 'fan_in' or 'fan_out', got 'fan'"):
            inits.kaiming((3, 3), mode="fan")  # type: ignore[arg-type]

    def test_distributions(self) -> None:
        with pytest.raises(TheoryError, match="normal needs a finite std ≥ 0, got -1"):
            inits.normal((3, 3), std=-1.0)
        with pytest.raises(TheoryError, match="a ≤ b"):
            inits.uniform((3, 3), 1.0, 0.0)
        with pytest.raises(TheoryError, match="std > 0 and a < b"):
            inits.trunc_normal((3, 3), std=0.0)
        with pytest.raises(TheoryError, match="keeps almost nothing"):
            inits.trunc_normal((3, 3), a=20.0, b=30.0)

    def test_counts(self) -> None:
        with pytest.raises(TheoryError, match="at least 1, got 0"):
            inits.depth_scaled(inits.lecun((3, 3)), 0)
        with pytest.raises(TheoryError, match="at least 1 layer, got 0"):
            inits.deepnorm(0)
