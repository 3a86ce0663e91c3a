"""Measured statistics against an independent float64 double, and gains against their sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evenflow.flow import Flow, Role, Stats
from evenflow.measure import measure
from tests.measure.nets import NETS
from tests.oracles.autograd_double import double_step, exponent_counts, rms

ROLES = (Role.ACTIVATION, Role.ACTIVATION_GRADIENT, Role.PARAMETER, Role.PARAMETER_GRADIENT)


def places(flow: Flow, role: Role) -> dict[str, Stats]:
    """Stats by module path, containers included, or by parameter name."""
    if role in (Role.PARAMETER, Role.PARAMETER_GRADIENT):
        return flow.stats(role)
    return {m.path: row.stats for row in flow.select(role) if row.stats for m in row.output_of}


@pytest.mark.parametrize("name", NETS)
def test_float32_statistics_agree_with_a_float64_double(name: str) -> None:
    model, inputs, loss = NETS[name]()
    flow, truth = measure(model, inputs, loss), double_step(model, inputs, loss)
    seen = set()
    for role in ROLES:
        for place, stats in places(flow, role).items():
            entries = truth[str(role), place]
            scale = rms(entries)
            seen.add((str(role), place))
            if scale < 1e-12:  # biases in front of a BatchNorm: zero but for rounding
                assert stats.rms < 1e-5 * max(rms(e) for (r, _), e in truth.items() if r == role)
                continue
            assert stats.count == entries.size
            assert stats.rms == pytest.approx(scale, rel=1e-5)
            assert stats.mean == pytest.approx(entries.mean(), rel=1e-5, abs=1e-6 * scale)
            assert stats.abs_max == pytest.approx(np.abs(entries).max(), rel=1e-5)
    assert seen == set(truth)


@pytest.mark.parametrize("name", NETS)
def test_float64_statistics_are_exact(name: str) -> None:
    model, inputs, loss = NETS[name]()
    model = model.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    flow, truth = measure(model, inputs, loss), double_step(model, inputs, loss)
    for role in ROLES:
        for place, stats in places(flow, role).items():
            entries = truth[str(role), place]
            assert stats.mean_square == pytest.approx(np.mean(entries**2), rel=1e-12)
            assert stats.abs_max == np.abs(entries).max()
            assert stats.zero_count == np.count_nonzero(entries == 0)
            assert stats.exponents is not None
            counts = {stats.exponents.low + k: c for k, c in enumerate(stats.exponents.counts) if c}
            assert counts == exponent_counts(entries)


@pytest.mark.parametrize("level", ["op", "module", "block"])
@pytest.mark.parametrize("name", NETS)
def test_log_gains_add_up_to_the_end_to_end_ratio(name: str, level: str) -> None:
    model, inputs, loss = NETS[name]()
    flow, truth = measure(model, inputs, loss), double_step(model, inputs, loss)
    budget = flow.budget(level)  # type: ignore[arg-type]
    first = {"mlp": "0", "cnn": "0", "transformer": "embedding"}[name]
    start = truth["activation_gradient", first]
    end_to_end = math.log10(np.linalg.norm(start))  # the gradient of the loss at itself is 1
    assert budget.total == pytest.approx(end_to_end, abs=1e-6)
    chain = flow.chain()
    assert len(chain) == len(flow.budget("op")) + 1


def test_the_transformers_chain_is_its_residual_stream() -> None:
    model, inputs, loss = NETS["transformer"]()
    chain = measure(model, inputs, loss).chain()
    assert [row.site.label for row in chain] == [
        "embedding:embedding",
        *(f"blocks.{k}:add{suffix}" for k in range(4) for suffix in ("", "[1]")),
        "norm:native_layer_norm",
        "head:addmm",
        "<loss>:_log_softmax",
        "<loss>:nll_loss_forward",
    ]
    assert [link.place for link in measure(model, inputs, loss).budget("block")] == [
        *(f"blocks.{k}" for k in range(4)),
        "norm",
        "head",
        "<loss>",
    ]


def test_each_gain_is_the_ratio_at_its_module() -> None:
    """For modules in a row, each link is what the module itself does to the norm."""
    model, inputs, loss = NETS["mlp"]()
    truth = double_step(model, inputs, loss)
    for link in measure(model, inputs, loss).budget("module"):
        if link.path.isdigit():
            own = np.linalg.norm(truth["activation_gradient", link.path])
            before = np.linalg.norm(truth["activation_gradient", str(int(link.path) - 1)])
            assert link.log10_gain == pytest.approx(math.log10(before / own), abs=1e-5)


def test_forward_order_comes_from_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    flow = measure(Backwards(), torch.randn(5, 3), lambda out: out.square().mean())
    assert list(flow.rms("activation")) == ["first", "last"]
    assert list(flow.rms("parameter_gradient")) == ["first.weight", "first.bias", "last.weight", "last.bias"]


def test_an_op_that_no_user_code_runs_has_no_line() -> None:
    flow = measure(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(4, 3))
    assert {row.source for row in flow.select(Role.ACTIVATION)} == {None}


def test_sources_are_the_users_lines() -> None:
    model, inputs, loss = NETS["transformer"]()
    sources = {row.site.label: row.source for row in measure(model, inputs, loss).select(Role.ACTIVATION)}
    assert sources["blocks.0:gelu"] is not None
    file, line = sources["blocks.0:gelu"].split(":")
    assert file.endswith("tests/measure/nets.py")
    with open(file) as text:
        assert "F.gelu" in text.readlines()[int(line) - 1]


def test_dead_and_saturated_shares() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([-100.0, 0.0, 0.0, 100.0]))
    relu = measure(nn.Sequential(linear, nn.ReLU()), torch.randn(32, 6), lambda out: out.mean())
    assert relu.select(Role.ACTIVATION)[-2].dead_fraction == 0.25
    tanh = measure(nn.Sequential(linear, nn.Tanh()), 0.1 * torch.randn(32, 6), lambda out: out.mean())
    assert tanh.select(Role.ACTIVATION)[-2].saturated_fraction == pytest.approx(0.5)


class _Product(torch.autograd.Function):
    """x Wᵀ for a batch x that needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0].t() @ ctx.saved_tensors[0]


class _Halve(torch.autograd.Function):
    """W/2, in two ops."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 1.0) / 2.0

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] / 2.0


class _Net(nn.Module):
    def __init__(self, *, own_product: bool) -> None:
        super().__init__()
        self.own_product = own_product
        self.weight, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.own_product:
            return self.head(torch.tanh(_Product.apply(x, self.weight)))
        return self.head(torch.tanh(x @ _Halve.apply(self.weight).t()))


@pytest.mark.parametrize(("own_product", "first"), [(True, ":_Product"), (False, ":mm")])
def test_the_chain_starts_at_a_custom_function_only_if_it_reads_the_batch(
    own_product: bool, first: str
) -> None:
    flow = measure(_Net(own_product=own_product), torch.ones(5, 3), lambda out: out.sum())
    assert [row.site.label for row in flow.chain()] == [first, ":tanh", "head:addmm", "<loss>:sum"]
