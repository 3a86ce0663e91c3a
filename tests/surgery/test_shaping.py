"""Shaped activations: their kernel maps by other means, and what depth does to gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evenflow.surgery import Edit, Patch, Reinitialise, ShapeActivation
from evenflow.surgery.pieces.shaped import Shaped
from evenflow.surgery.shaping import tailored_slope
from evenflow.theory import c_map, get_activation
from tests.surgery.nets import built, chain, features

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(180)
Z = torch.tensor(NODES)
P = torch.tensor(WEIGHTS / WEIGHTS.sum())


def _slopes(module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of the real module at the nodes, by autograd in float64."""
    z = Z.clone().requires_grad_()
    value = module(z)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    return value.detach(), first.detach(), second


def _shaped(act: Callable[[], nn.Module], method: str, layers: int) -> Shaped:
    edited = Patch(ShapeActivation(method, layers=layers)).apply(
        nn.Sequential(nn.Linear(4, 4), act(), nn.Linear(4, 4))
    )
    found = edited[1]
    assert isinstance(found, Shaped)
    return found


def _mean(values: Tensor) -> float:
    return float((P * values).sum())


@pytest.mark.parametrize("layers", [3, 50, 1000])
@pytest.mark.parametrize("act", [nn.Tanh, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Softplus, nn.Mish])
def test_tat_of_smooth_activations(act: Callable[[], nn.Module], layers: int) -> None:
    value, first, second = _slopes(_shaped(act, "tat", layers))
    close = 1e-6 if act is not nn.Softplus else 1e-5
    assert _mean(value**2) == pytest.approx(1, abs=close)  # Q(1)
    assert _mean(value * first * Z) == pytest.approx(1, abs=close)  # Q'(1)
    assert _mean(first**2) == pytest.approx(1, abs=close)  # C'(1)
    assert _mean(second**2) == pytest.approx(0.3 / layers, rel=1e-3)  # C''(1)


@pytest.mark.parametrize("layers", [3, 50, 1000])
@pytest.mark.parametrize("act", [nn.Tanh, nn.SiLU, nn.GELU, nn.Sigmoid])
def test_dks(act: Callable[[], nn.Module], layers: int) -> None:
    value, first, _ = _slopes(_shaped(act, "dks", layers))
    assert _mean(value**2) == pytest.approx(1, abs=1e-6)
    assert _mean(value) == pytest.approx(0, abs=1e-6)  # C(0) = (E φ̂)²
    assert _mean(value * first * Z) == pytest.approx(1, abs=1e-6)
    assert _mean(first**2) ** layers == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize(("layers", "slope"), [(20, 0.18138), (50, 0.43052), (100, 0.57044), (1000, 0.84435)])
def test_tat_of_rectifiers_takes_the_correlation_map_where_it_should(layers: int, slope: float) -> None:
    assert tailored_slope(layers) == pytest.approx(slope, abs=1e-5)
    phi = get_activation("leaky_relu", negative_slope=tailored_slope(layers))
    c = 0.0
    for _ in range(min(layers, 100)):
        c = c_map(phi, c, 1.0, 2.0 / (1.0 + tailored_slope(layers) ** 2))
    assert c == pytest.approx(0.9, abs=1e-6) if layers <= 100 else c < 0.9


def test_a_shaped_rectifier_keeps_the_mean_square() -> None:
    shaped = _shaped(nn.ReLU, "tat", 50)
    x = features(100_000)
    assert shaped(x).square().mean().item() == pytest.approx(1.0, rel=0.02)
    assert shaped(x)[x < 0] / x[x < 0] == pytest.approx(shaped.gamma * 0.43052, abs=1e-4)


DEEP: dict[str, tuple[type[nn.Module], list[Edit]]] = {
    "critical tanh": (nn.Tanh, [Reinitialise("critical")]),
    "tailored leaky ReLU": (nn.LeakyReLU, [ShapeActivation(), Reinitialise("orthogonal")]),
    "tailored ReLU": (nn.ReLU, [ShapeActivation(), Reinitialise("critical")]),
    "tailored SiLU": (nn.SiLU, [ShapeActivation(), Reinitialise("orthogonal")]),
    "kernel-shaped tanh": (nn.Tanh, [ShapeActivation("dks"), Reinitialise("orthogonal")]),
}


def _decades(net: nn.Sequential, width: int) -> float:
    """Span of the root mean square of the gradients at all layers' outputs, in decades."""
    kept: list[Tensor] = []
    x = features(32, width)
    x = x / x.square().mean().sqrt()
    for module in net:
        x = module(x)
        if isinstance(module, nn.Linear):
            x.retain_grad()
            kept.append(x)
    x.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    rms = np.array([one.grad.square().mean().sqrt().item() for one in kept if one.grad is not None])
    assert len(rms) == 1001
    logs = np.log10(np.maximum(rms, 1e-38))
    return float(logs.max() - logs.min())


@pytest.mark.parametrize(
    "name",
    [name if number < 2 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(DEEP)],
)
def test_a_thousand_plain_layers_keep_their_gradient(name: str) -> None:
    act, edits = DEEP[name]
    net = built(lambda: chain(1000, 64, act, out=64))
    edited = Patch(edits).apply(net)
    assert _decades(edited, 64) < 0.5


def test_a_thousand_plain_layers_without_the_patch_lose_it() -> None:
    net = built(lambda: chain(1000, 64, nn.Tanh, out=64))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.95 / 8)
    assert _decades(net, 64) > 10
