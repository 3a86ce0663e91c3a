"""The way of the gradient: what it counts and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import ops
from evenflow.diagnose.graph import OpGraph
from evenflow.diagnose.way import Kind, Way, in_steps, ways
from evenflow.flow import Flow, Role, Site
from evenflow.measure import measure
from tests.diagnose.chains import Op, chain, mlp, tensor


def the_way(flow: Flow) -> Way:
    graph = OpGraph(flow)
    (way,) = ways(graph)
    return in_steps(graph, way)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "_prelu_kernel": lambda x: F.leaky_relu(x, 0.25),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gain_that_weights_need_is_one_over_the_rms_of_the_slope(name: str) -> None:
    def density(z: float) -> float:
        x = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        FUNCTIONS[name](x).backward()
        assert x.grad is not None
        return float(x.grad) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    mean_square = sum(quad(density, low, low + 3, limit=200)[0] for low in (-9, -6, -3, 0, 3, 6))
    assert pytest.approx(mean_square**-0.5, abs=2e-6) == ops.BACKWARD_GAIN[name]


def test_the_gain_of_a_random_leaky_relu_is_that_of_its_mean_square_slope() -> None:
    low, high = 1 / 8, 1 / 3
    mean_square_slope = (high**3 - low**3) / 3 / (high - low)
    expected = (2 / (1 + mean_square_slope)) ** 0.5
    assert ops.BACKWARD_GAIN["rrelu_with_noise"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "slope"), ops.SQUASHING_SLOPE.items())
def test_the_steepest_slope_of_every_bounded_function(name: str, slope: float) -> None:
    function = {"softsign": F.softsign, "hardsigmoid": F.hardsigmoid}.get(name) or getattr(torch, name)
    x = torch.linspace(-2.0001, 2.0001, 40_001, dtype=torch.float64, requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.max()) == pytest.approx(slope, rel=1e-4)


def test_ratio_and_excess_of_a_chain() -> None:
    way = the_way(chain(mlp(5, "sigmoid", weights=0.5, slope=0.2)))
    assert way.log10_ratio == pytest.approx(4 * (math.log10(0.5) + math.log10(0.2)))
    assert way.excess == pytest.approx(way.log10_ratio)
    assert way.layers == 4
    assert not way.has_skips
    assert [step.kind for step in way.steps[:2]] == [Kind.SQUASHING, Kind.LINEAR]


def test_excesses_add_up_to_the_way_and_know_what_each_kind_is_made_for() -> None:
    way = the_way(chain(mlp(6, "relu", weights=0.57735, slope=0.70711)))
    assert math.fsum(step.excess for step in way.steps) == pytest.approx(way.excess)
    for step in way.steps:
        expected = 0.0 if step.kind is Kind.RECTIFIER else math.log10(0.57735 / 1.414214)
        assert step.excess == pytest.approx(expected, abs=1e-5)


def test_an_average_over_k_entries_is_allowed_its_root_k() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    way = the_way(measure(model, torch.randn(4, 3, 18, 18)))
    (pool,) = [step for step in way.steps if step.kind is Kind.OTHER]
    assert pool.log10_gain == pytest.approx(0.0, abs=1e-6)
    assert way.log10_ratio - way.excess == pytest.approx(-0.5 * math.log10(16 * 16))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
def test_weights_whose_scale_a_normalisation_removes_do_not_count(norm: type[nn.Module]) -> None:
    model = nn.Sequential(
        nn.Linear(16, 32), norm(32), nn.ReLU(), nn.Linear(32, 32), norm(32), nn.Linear(32, 4)
    )
    inputs = torch.randn(32, 16)
    before = the_way(measure(model, inputs))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            assert isinstance(layer, nn.Linear)
            layer.weight.mul_(100.0)
            layer.bias.mul_(100.0)
    after = the_way(measure(model, inputs))
    assert after.log10_ratio == pytest.approx(before.log10_ratio - 2.0, abs=0.01)
    assert after.excess == pytest.approx(before.excess, abs=0.01)


def test_only_what_both_ways_of_counting_agree_on_is_certain() -> None:
    def way(plain: float, excess: float) -> Way:
        row = chain([Op("addmm")]).rows[0]
        return Way(row, row, (), 0.0, plain, excess)

    assert way(-4.0, -6.0).certain == -4.0
    assert way(5.0, 3.0).certain == 3.0
    assert way(-4.0, 0.5).certain == 0.0
    assert way(0.0, -6.0).certain == 0.0


def test_a_gradient_that_is_lost_on_the_way_and_found_again_is_counted_by_its_ends() -> None:
    flow = chain([Op("addmm"), Op("relu", 0.1), Op("addmm", 0.1), Op("relu", 0.1), Op("addmm", 0.1)])
    silent = Site("2", "addmm", Role.ACTIVATION_GRADIENT)
    lost = [replace(row, stats=tensor(6400, 0.0)) if row.site == silent else row for row in flow]
    assert the_way(flow).log10_ratio == the_way(flow).excess == pytest.approx(-4.0)
    graph = OpGraph(Flow(lost, "measured"))
    (way,) = ways(graph)
    assert way.log10_ratio == way.plain == way.excess == pytest.approx(-4.0)


class HandNorm(nn.Module):
    """LayerNorm as people spell it out."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def test_a_normalisation_that_is_spelled_out_counts_too() -> None:
    def way(scale: float) -> Way:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), HandNorm(), nn.Linear(32, 4))
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.mul_(scale)
        return the_way(measure(model, torch.ones(8, 16)))

    assert way(100.0).log10_ratio == pytest.approx(way(1.0).log10_ratio - 2.0, abs=0.01)
    assert way(100.0).excess == pytest.approx(way(1.0).excess, abs=0.01)


def test_without_a_normalisation_the_scale_of_weights_counts() -> None:
    def excess(scale: float) -> float:
        return the_way(chain(mlp(3, "relu", weights=1.4 * scale, slope=0.7))).excess

    assert excess(10.0) - excess(1.0) == pytest.approx(2.0)


def test_every_entry_has_a_way() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.a(x), self.b(x)], 1))

    found = ways(OpGraph(measure(Towers(), torch.randn(5, 4))))
    assert [(way.first.site.path, way.last.site.path) for way in found] == [("a", "head"), ("b.0", "head")]


def test_what_chance_allows_is_the_lognormal_of_finite_width() -> None:
    """Hanin 2018 against 400 random ReLU nets of 20 layers of 20 units."""
    generator = torch.Generator().manual_seed(1)
    depth, units, draws = 20, 20, 400
    delta = torch.randn(draws, units, 1, generator=generator, dtype=torch.float64)
    start = delta.square().sum((1, 2))
    for _ in range(depth):
        weights = torch.randn(draws, units, units, generator=generator, dtype=torch.float64) / units**0.5
        mask = torch.rand(draws, units, 1, generator=generator) < 0.5
        delta = weights.transpose(1, 2) @ delta * mask * 2**0.5
    log10_norm = 0.5 * (delta.square().sum((1, 2)) / start).log10()
    flow = chain(mlp(depth + 1, "relu", weights=1.41, slope=0.71), units=units)
    low, high = the_way(flow).usual(1.0)
    assert (low + high) / 2 == pytest.approx(float(log10_norm.mean()), abs=0.1)
    assert (high - low) / 2 == pytest.approx(float(log10_norm.std()), rel=0.15)


def test_a_loop_over_a_cell_is_a_recurrence_and_many_layers_of_one_module_are_not() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 8)
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state)

    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            crops = [self.tower(x[:, t]) for t in range(x.shape[1])]
            return self.head(torch.stack(crops).amax(0))

    x = torch.randn(4, 12, 3)
    assert list(OpGraph(measure(Loop(), x)).loops) == ["cell"]
    assert OpGraph(measure(Crops(), x)).loops == {}
    way = next(way for way in ways(OpGraph(measure(Loop(), x))) if way.first.site.path == "cell")
    assert way.log10_ratio < -1.0
    assert way.excess > -0.5


def test_a_gate_is_not_hidden_and_a_sum_after_a_sigmoid_is() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.gate, self.squash = nn.Sigmoid(), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            gated = self.b(x) * (1 + self.gate(self.a(x)))
            return self.c(x + self.squash(gated))

    graph = OpGraph(measure(Gates(), torch.randn(5, 4)))
    assert {row.site.path: graph.is_gate(row.order) for row in graph.gradients.values()} == {
        "a": False,
        "gate": True,
        "b": True,
        "": False,
        "squash": False,
        "c": False,
    }
    assert {row.site.path for row in graph.gradients.values() if not graph.is_hidden(row)} == {"c"}


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_the_size_of_the_inputs_is_read_from_the_first_layer(scale: float) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU())
    nn.init.constant_(model[0].bias, 2 * scale)  # type: ignore[arg-type]
    graph = OpGraph(measure(model, scale * torch.randn(64, 256)))
    assert graph.input_rms(graph.gradients[0]) == pytest.approx(scale, rel=0.05)


def test_no_gradients_no_graph() -> None:
    flow = chain([Op("addmm"), Op("relu")])
    only_forward = Flow([row for row in flow if row.site.role == "activation"], "predicted")
    with pytest.raises(Exception, match=r"^the Flow holds no gradients of activations$"):
        OpGraph(only_forward)
