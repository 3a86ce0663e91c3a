"""EF201: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Loop, Program, batch, classify, glorot, wide
from tests.diagnose.programs import mlp as network

RULE = "EF201"


def test_pixels_that_were_never_scaled() -> None:
    finding = only(classify(network(2, nn.Tanh, glorot), 255 * batch()), RULE)
    assert (finding.severity, finding.site, top(finding)) == (Severity.WARNING, "1", CauseName.UNSCALED_INPUT)
    assert finding.remedies[0] == "Standardise the inputs to mean 0 and standard deviation 1."
    assert silent(classify(network(2, nn.Tanh, glorot), batch()), RULE)


def test_weights_that_are_too_large() -> None:
    finding = only(classify(network(5, nn.Sigmoid, wide), batch()), RULE)
    assert (finding.severity, finding.site, top(finding)) == (Severity.WARNING, "1", CauseName.INIT_TOO_LARGE)
    assert finding.causes[0].evidence == (
        "The weights of Linear 0 have a gain of 8 (√fan_in · RMS); about 1 suits this activation."
    )


def test_the_text_of_a_finding() -> None:
    ops = [
        Op("addmm", size=8.0, weight=0.8),
        Op("tanh", flat=0.81),
        Op("addmm", size=8.0, weight=0.8),
        Op("tanh", flat=0.7),
        Op("addmm", weight=0.1),
    ]
    (finding,) = diagnose(chain(ops), select=RULE).findings
    assert finding.message == "81 % of the units of Tanh 1 are saturated: they pass almost no gradient."
    assert [evidence.text for evidence in finding.evidence] == [
        "At 81 % of the outputs of Tanh 1 the slope is below a tenth of its largest (looked at above 50 %).",
        "So it is at Tanh 3: 2 of 2 layers, which leave 6 % of the paths open.",
    ]
    assert finding.source == "net.py:2"


@pytest.mark.parametrize(
    ("flat", "severities"),
    [((0.5,), []), ((0.51,), ["note"]), ((0.89,), ["note"]), ((0.91,), ["warning"]),
     ((0.6, 0.6), ["note"]), ((0.6, 0.6, 0.6), ["warning"]), ((0.45,) * 9, [])],
)  # fmt: skip
def test_layers_in_a_row_close_the_paths(flat: tuple[float, ...], severities: list[str]) -> None:
    ops = [Op("addmm", weight=0.1)]
    for share in flat:
        ops += [Op("tanh", flat=share), Op("addmm", weight=0.1)]
    assert [finding.severity for finding in diagnose(chain(ops), select=RULE).findings] == severities


@pytest.mark.parametrize(("inputs", "severity"), [(5.0, Severity.NOTE), (50.0, Severity.WARNING)])
def test_one_layer_that_inputs_off_scale_have_closed_is_an_alarm(inputs: float, severity: Severity) -> None:
    ops = [Op("addmm", size=inputs, weight=0.1), Op("sigmoid", flat=0.6), Op("addmm", weight=0.1)]
    (finding,) = diagnose(chain(ops), select=RULE).findings
    assert finding.severity is severity


def test_an_output_and_a_loop_of_gates_are_not_judged() -> None:
    assert silent(classify(nn.Sequential(nn.Linear(64, 10), nn.Tanh()), 1e3 * batch()), RULE)
    cell = nn.LSTMCell(8, 32)
    nn.init.constant_(cell.bias_hh, 20.0)
    assert silent(classify(Loop(cell), batch(8, 40).unflatten(1, (5, 8))), RULE)


def test_a_skip_around_saturated_layers_leaves_the_paths_open() -> None:
    class Stack(nn.Module):
        def __init__(self, skip: float) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(4)])
            self.head, self.skip = nn.Linear(64, 10), skip
            for layer in self.layers:
                nn.init.normal_(layer.weight, std=0.5)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).tanh() + (self.skip * x if self.skip else 0.0)
            return self.head(x)

    assert only(classify(Stack(0.5), batch()), RULE).severity is Severity.NOTE
    assert only(classify(Stack(0.0), batch()), RULE).severity is Severity.WARNING


def test_without_the_shares_the_rule_says_that_it_cannot_judge() -> None:
    flow = chain([Op("addmm"), Op("tanh", flat=0.9), Op("addmm")])
    blind = Flow([replace(row, saturated_fraction=None) for row in flow], "measured")
    diagnosis = diagnose(blind, select=RULE)
    assert diagnosis.findings == ()
    assert diagnosis.skipped[0].reason == "the Flow does not say which share of each activation is saturated"


def test_a_loss_of_derivatives_does_not_make_a_gate_of_a_tanh() -> None:
    class Slope(nn.Module):
        def __init__(self, period: float) -> None:
            super().__init__()
            self.net, self.period = network(3, nn.Tanh, inputs=1, outputs=1), period

        def forward(self, x: Tensor) -> Tensor:
            t = (self.period * x).requires_grad_()
            y = self.net(t)
            (slope,) = torch.autograd.grad(y.sum(), t, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
            return y + slope + bend

    times = torch.rand(64, 1)
    assert only(Program(Slope(1000.0), times, lambda y: y.square().mean()), RULE).site == "net.1"
    assert silent(Program(Slope(1.0), times, lambda y: y.square().mean()), RULE)


def test_a_part_without_gradients_is_left_out() -> None:
    model = network(3, nn.Tanh)
    model[0].requires_grad_(False)
    assert silent(classify(model, batch()), RULE)
