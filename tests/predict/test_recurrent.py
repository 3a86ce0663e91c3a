"""Recurrent layers take the same steps, under the same names, predicted and measured."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.predict.oracle import disagreement
from torch import nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict
from evenflow.predict.fields import Leaf, cross
from evenflow.predict.pointwise import apply, product
from evenflow.predict.rules.recurrent import STEPS, _run
from evenflow.predict.rules.registry import Context
from evenflow.predict.rules.views import cut
from evenflow.predict.table import independent

NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn_tanh": (nn.RNN, {"batch_first": True}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
}


@pytest.mark.parametrize("name", NETS)
def test_steps_are_those_of_torch(name: str) -> None:
    kind, options = NETS[name]
    net = kind(6, 8, **options)
    x = torch.randn(5, 4, 6)
    hidden = torch.zeros(net.num_layers * (2 if net.bidirectional else 1), 5 if net.batch_first else 4, 8)
    found = _run(
        STEPS[name], x, hidden, net._flat_weights, net.bias, net.num_layers, 0.0, True,
        net.bidirectional, net.batch_first,
    )  # fmt: skip
    for ours, theirs in zip(found, net(x, hidden), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NETS)
def test_sites_are_those_of_a_measured_batch(name: str) -> None:
    kind, options = NETS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(64, 64, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.cell(x)[0]
            return y

    x = torch.randn(8, 8, 64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    predicted, measured = predict(Net, x), measure(net, x)
    ours, theirs = (
        [row.site.label for row in sorted(flow.select(Role.ACTIVATION), key=lambda row: row.order)]
        for flow in (predicted, measured)
    )
    assert ours == theirs
    for row in predicted.select(Role.ACTIVATION):
        other = next(each for each in measured.select(Role.ACTIVATION) if each.site == row.site)
        assert row.stats is not None
        assert other.stats is not None
        assert row.stats.mean_square == pytest.approx(other.stats.mean_square, rel=0.5), row.site.label


def test_torch_gets_its_functions_back() -> None:
    predict(lambda: nn.GRU(64, 64), torch.randn(2, 2, 64))
    assert torch._VF.gru is torch._C._VariableFunctions.gru


def test_gates_do_not_stand_for_each_other() -> None:
    """The reset gate's gradient g (1 − z) tanh'(n) h is a difference of products with different gates."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRU(16, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.out(self.cell(x)[0][:, -1])
            return y

    x = torch.randn(16, 2, 16, generator=torch.Generator().manual_seed(0))
    found = disagreement(
        Net,
        x,
        lambda y: nn.functional.cross_entropy(y, torch.arange(16) % 10),
        draws=6,
        roles=(Role.ACTIVATION_GRADIENT,),
    )
    gates = {site: error for site, (error, _) in found.items() if "sigmoid" in site}
    assert len(gates) == 4
    assert max(map(abs, gates.values())) < 0.06, gates


def test_a_state_and_what_the_gate_lets_through() -> None:
    """E f c · c' = E f E c c': a gate cut from the same tensor as the state is no partner for the state."""
    rows = Leaf(independent((16, 8), 1.0))
    context = Context(Counter())
    gate, state = (cut(context, rows, 1, start, start + 4) for start in (0, 4))
    kept = product(gate.shape, apply(torch.sigmoid, "sigmoid", [gate], {}, gate.shape), state)
    pair = cross(kept, state)
    assert pair is not None
    drawn = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    measured = float((drawn[0].sigmoid() * drawn[1] * drawn[1]).mean())
    assert pair.mean_square == pytest.approx(measured, abs=0.01)


def test_no_correlation_is_independence() -> None:
    """Different columns of independent entries."""
    rows = Leaf(independent((16, 8), 1.0))
    context = Context(Counter())
    assert cross(cut(context, rows, 1, 0, 4), cut(context, rows, 1, 4, 8)) is None


class Averaged(nn.Module):
    """An LSTM whose states are averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(32, 96, batch_first=True), nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.cell(x)[0].mean(1))
        return y


def test_what_an_lstm_keeps() -> None:
    """States share their past and their biases: taken as unrelated, gradients are .2 decades too small."""
    x = torch.randn(16, 8, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 10
    found = disagreement(
        Averaged,
        x,
        lambda y: nn.functional.cross_entropy(y, labels),
        draws=6,
        roles=(Role.PARAMETER_GRADIENT,),
    )
    assert max(abs(error) for error, _ in found.values()) < 0.06, found
