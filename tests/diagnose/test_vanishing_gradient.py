"""EF101: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Diagnosis, Severity, diagnose
from evenflow.flow import Flow, Role
from evenflow.measure import measure
from tests.diagnose.chains import Op, chain, mlp
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import (
    Branch,
    Program,
    batch,
    classify,
    glorot,
    he,
    images,
    initialised,
)
from tests.diagnose.programs import mlp as network

RULE = "EF101"


def digits() -> Tensor:
    pixels = torch.tensor(load_digits().data[:256], dtype=torch.float32)
    return (pixels - pixels.mean()) / pixels.std()


@pytest.mark.parametrize(("init", "predicted"), [(None, -16.17), (glorot, -11.96)], ids=["default", "glorot"])
def test_twenty_sigmoid_layers_on_digits_vanish_as_theory_says(
    init: Callable[[Tensor], Any] | None, predicted: float
) -> None:
    """THEORY: expected log10 ‖δ₁‖/‖δ_L‖ of 20 layers of 128 units."""
    finding = only(classify(network(20, nn.Sigmoid, init), digits()), RULE)
    assert finding.severity is Severity.ERROR
    assert finding.site == "0"
    assert top(finding) is CauseName.SATURATING_ACTIVATION
    assert finding.evidence[0].value == pytest.approx(predicted, abs=0.3)


@pytest.mark.parametrize(("activation", "init"), [(nn.ReLU, he), (nn.Tanh, glorot)])
def test_the_same_depth_with_an_activation_and_weights_that_fit_is_silent(
    activation: type[nn.Module], init: Callable[[Tensor], Any]
) -> None:
    assert silent(classify(network(20, activation, init), digits()), RULE)


def test_the_same_depth_as_he_relu_with_skips_is_silent() -> None:
    blocks = [Branch(network(2, nn.ReLU, he, inputs=128, outputs=128), 9**-0.5) for _ in range(9)]
    model = nn.Sequential(nn.Linear(64, 128), *blocks, nn.Linear(128, 10))
    program = classify(model, digits())
    assert diagnose(measure(program.model, program.inputs, program.loss)) == Diagnosis()


def test_the_text_of_a_finding() -> None:
    flow = chain(mlp(20, "sigmoid", weights=0.57735, slope=0.24), top=1e-2)
    (finding,) = diagnose(flow).findings
    assert finding.message == (
        "The gradient shrinks by a factor of 10^16.3 from Addmm 38 back to Addmm 0, over 19 layers."
    )
    assert [evidence.text for evidence in finding.evidence] == [
        "log10 of the gradient's norm at Addmm 0 over that at Addmm 38: -16.31 (alarm below -3).",
        "0.86 decades lost per layer; by chance alone, networks of this depth and width end between "
        "-0.5 and +0.3 in all.",
        "The weight gradient of Addmm 0 has RMS 4.9e-20, below Adam's ε of 1e-08: "
        "adaptive optimizers do not make up for it.",
    ]
    assert [(cause.name, round(cause.confidence, 2), cause.evidence) for cause in finding.causes] == [
        (
            CauseName.SATURATING_ACTIVATION,
            0.65,
            "sigmoid passes a factor of 0.24 on average (19 steps); its slope is nowhere above 0.25: "
            "11.8 of 16.3 decades.",
        ),
        (
            CauseName.INIT_TOO_SMALL,
            0.25,
            "The weights of 19 layers pass a factor of 0.58 on average where 1 keeps the gradient: "
            "4.5 of 16.3 decades.",
        ),
        (
            CauseName.DEPTH_WITHOUT_SKIP,
            0.1,
            "19 layers in a row without a skip connection: their factors multiply.",
        ),
    ]
    assert finding.remedies[0] == ("Replace the activation by ReLU, GELU or SiLU, with He initialisation.")
    assert (finding.site, finding.source) == ("0", "net.py:1")


def test_relu_with_default_weights_is_blamed_on_the_weights() -> None:
    finding = only(classify(network(20, nn.ReLU), batch()), RULE)
    assert top(finding) is CauseName.INIT_TOO_SMALL
    assert finding.evidence[0].value == pytest.approx(-7.39, abs=0.4)  # THEORY: 20 layers of 128


def test_a_mild_factor_per_layer_is_blamed_on_depth() -> None:
    flow = chain(mlp(200, "tanh", weights=1.14, slope=0.82), units=1000)
    (finding,) = diagnose(flow, select=RULE).findings
    assert top(finding) is CauseName.DEPTH_WITHOUT_SKIP


def test_a_shallow_stack_is_not_blamed_on_depth() -> None:
    (finding,) = diagnose(chain(mlp(4, "sigmoid", weights=0.5, slope=0.1)), select=RULE).findings
    assert [cause.name for cause in finding.causes] == [
        CauseName.SATURATING_ACTIVATION,
        CauseName.INIT_TOO_SMALL,
    ]


def test_rectifiers_that_pass_next_to_nothing_are_blamed_themselves() -> None:
    flow = chain([*mlp(6, "relu", weights=1.41, slope=0.71), Op("relu", 1e-4), Op("addmm", 1.4)])
    (finding,) = diagnose(flow, select=RULE).findings
    assert top(finding) is CauseName.DEAD_RELU


def test_a_tower_that_vanishes_beside_a_healthy_one_is_found() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = network(4, nn.ReLU, he, outputs=64)
            self.bad = network(12, nn.Sigmoid, outputs=64)
            self.head = nn.Linear(128, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.good(x), self.bad(x)], 1))

    finding = only(classify(Towers(), batch()), RULE)
    assert finding.site == "bad.0"
    assert top(finding) is CauseName.SATURATING_ACTIVATION


@pytest.mark.parametrize(
    ("decades", "severity"),
    [(-2.9, None), (-3.1, Severity.WARNING), (-14.0, Severity.ERROR)],
)
def test_the_threshold_and_the_reach_of_optimizers(decades: float, severity: Severity | None) -> None:
    each = 10 ** (decades / 3)
    flow = chain(mlp(4, "sigmoid", weights=1.0, slope=each))
    assert [finding.severity for finding in diagnose(flow, select=RULE).findings] == (
        [] if severity is None else [severity]
    )


def test_what_chance_does_to_a_deep_and_narrow_net_is_only_noted() -> None:
    ops = mlp(50, "relu", weights=1.414214, slope=0.70711 * 10 ** (-4.5 / 49))
    for units, severity in ((8, Severity.NOTE), (800, Severity.WARNING)):
        (finding,) = diagnose(chain(ops, units=units), select=RULE).findings
        assert finding.severity is severity


def test_a_prediction_must_be_past_the_threshold_by_its_half_width() -> None:
    flow = chain(mlp(4, "sigmoid", weights=1.0, slope=0.08))
    for half_width, alarms in ((0.1, 1), (0.5, 0)):
        rows = [replace(row, half_width=half_width) for row in flow]
        assert len(diagnose(Flow(rows, "predicted"), select=RULE).findings) == alarms


def test_large_inputs_make_up_for_a_small_gradient() -> None:
    """A normalisation divides by the size of what it reads, and the weights' gradient multiplies it back."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.gate, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x)
            return self.head(self.norm(x + self.gate(x).sigmoid()))

    assert silent(classify(Stream(), 1e5 * batch()), RULE)


def test_a_zero_head_is_noted_and_zeros_in_a_row_are_a_fault() -> None:
    def program(*zeros: int) -> Program:
        model = network(4, nn.Tanh, glorot)
        for i in zeros:
            nn.init.zeros_(model[i].weight)  # type: ignore[arg-type]
        return classify(model, batch())

    finding = only(program(6), RULE)
    assert (finding.severity, finding.site) == (Severity.NOTE, "6")
    assert finding.message == "The gradient ends at Linear 6: below it is exactly zero, down to Linear 0."
    assert finding.causes[0].evidence == (
        "6.weight is all zeros, as many recipes begin on purpose; the gradient passes from the second "
        "step on."
    )
    finding = only(program(6, 4), RULE)
    assert (finding.severity, top(finding)) == (Severity.ERROR, CauseName.ZERO_INIT_SYMMETRY)
    assert finding.causes[0].evidence == (
        "6.weight, 4.weight are all zeros, one above the other: no step opens them, or all units of a layer "
        "stay equal."
    )


def test_one_factor_of_a_low_rank_change_is_zero_on_purpose_and_both_are_a_fault() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear, both: bool) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Parameter(torch.zeros(4, base.in_features))
            self.up = nn.Parameter(torch.zeros(base.out_features, 4))
            if not both:
                nn.init.kaiming_uniform_(self.down)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.base(x) + 4.0 * (x @ self.down.T @ self.up.T)
            return y

    def program(both: bool) -> Program:
        model = network(3, nn.ReLU, he)
        for i in (0, 2, 4):
            model[i] = Adapted(model[i], both)  # type: ignore[arg-type]
        return classify(model, batch())

    finding = only(program(both=False), RULE)
    assert (finding.severity, finding.site) == (Severity.NOTE, "0:mm[1]")
    finding = only(program(both=True), RULE)
    assert (finding.severity, top(finding)) == (Severity.ERROR, CauseName.ZERO_INIT_SYMMETRY)
    assert "0.down, 0.up are all zeros, one above the other" in finding.causes[0].evidence


def test_a_zero_kernel_before_a_rectifier_never_opens() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    initialised(model, he)
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    finding = only(classify(model, images()), RULE)
    assert (finding.severity, top(finding)) == (Severity.ERROR, CauseName.ZERO_INIT_SYMMETRY)


def test_a_dead_layer_ends_the_gradient() -> None:
    model = network(3, nn.ReLU, he)
    nn.init.constant_(model[2].bias, -50.0)  # type: ignore[arg-type]
    finding = only(classify(model, batch()), RULE)
    assert (finding.severity, finding.site, top(finding)) == (Severity.ERROR, "3", CauseName.DEAD_RELU)


def test_a_function_without_slope_cuts_the_gradient_off() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).round())

    finding = only(classify(Rounded(), batch()), RULE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.FROZEN_OR_DETACHED)
    assert finding.causes[0].evidence == (
        "round has slope zero everywhere: it cuts the gradient off like a detach."
    )


def test_saturation_down_to_the_last_bit_is_told_from_underflow() -> None:
    finding = only(classify(network(2, nn.Tanh, glorot), 1e6 * batch()), RULE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.SATURATING_ACTIVATION)
    finding = only(classify(network(80, nn.Sigmoid), batch()), RULE)
    assert (finding.severity, top(finding)) == (Severity.ERROR, CauseName.PRECISION_UNDERFLOW)


def test_the_rule_stands_back_from_gradients_that_are_not_finite() -> None:
    flow = chain(mlp(20, "sigmoid", weights=0.5, slope=0.2))
    rows = [
        replace(row, stats=replace(row.stats, nonfinite_count=1))
        if row.stats is not None and row.site.role is Role.ACTIVATION_GRADIENT
        else row
        for row in flow
    ]
    diagnosis = diagnose(Flow(rows, "measured"), select=RULE)
    assert diagnosis.findings == ()
    assert diagnosis.skipped[0].reason == "some gradients are NaN or infinite (see EF701)"


def test_a_single_layer_has_nothing_to_compare_with() -> None:
    assert silent(Program(nn.Linear(4, 2), torch.randn(3, 4), lambda out: F.mse_loss(out, out * 0)), RULE)
