"""EF301, EF302, EF303: weights that are too small, too large, or all the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Finding, Severity, diagnose
from evenflow.measure import measure
from tests.diagnose.chains import chain, mlp
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, batch, classify, glorot, he, initialised, narrow, wide
from tests.diagnose.programs import mlp as network

SMALL, LARGE, SYMMETRIC = "EF301", "EF302", "EF303"


def gain(factor: float) -> Callable[[Tensor], Tensor]:
    """Normal weights of a gain."""
    return lambda weight: nn.init.normal_(weight, std=factor / math.sqrt(weight[0].numel()))


# too small


def test_two_tiny_layers_starve_each_other_though_their_ratio_is_fine() -> None:
    program = classify(network(2, nn.Tanh, gain(1e-4)), batch())
    finding = only(program, SMALL)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.INIT_TOO_SMALL)
    assert finding.evidence[0].value == pytest.approx(4.0, abs=0.05)


def test_what_the_smallest_gain_leaves_out_is_the_gradient_of_the_best_placed_layer() -> None:
    """The gradient of a linear net's layers against that of the same net with gains of 1, by autograd."""
    factors = (1e-3, 1e-2, 3e-2)
    torch.manual_seed(0)
    well, ill = (network(3, nn.Identity, gain(1.0), units=512, inputs=512) for _ in range(2))
    ill.load_state_dict(well.state_dict())
    layers = [[m for m in net if isinstance(m, nn.Linear)] for net in (well, ill)]
    with torch.no_grad():
        for layer, factor in zip(layers[1], factors, strict=True):
            layer.weight.mul_(factor)
    x = torch.randn(64, 512)
    for net in (well, ill):
        net(x).sum().backward()
    ratios = [float(b.weight.grad.norm() / a.weight.grad.norm()) for a, b in zip(*layers, strict=True)]
    (finding,) = diagnose(measure(ill, x), select=SMALL).findings
    assert finding.evidence[0].value == pytest.approx(-math.log10(max(ratios)), abs=0.02)


def test_default_weights_under_deep_rectifiers_share_the_blame_with_depth() -> None:
    finding = only(classify(network(20, nn.ReLU), batch()), SMALL)
    assert {cause.name for cause in finding.causes} == {
        CauseName.INIT_TOO_SMALL,
        CauseName.DEPTH_WITHOUT_SKIP,
    }
    assert sum(cause.confidence for cause in finding.causes) == pytest.approx(1.0)


def test_near_misses_of_small_weights() -> None:
    head = network(5, nn.ReLU, he)
    nn.init.normal_(head[-1].weight, std=1e-8)  # type: ignore[arg-type]
    assert silent(classify(head, batch()), SMALL)
    assert silent(classify(network(6, nn.ReLU), batch()), SMALL)
    assert silent(classify(network(50, nn.Tanh, glorot), batch()), SMALL)
    assert silent(classify(network(20, nn.ReLU, narrow, norm=nn.LayerNorm), batch()), SMALL)
    assert silent(
        classify(network(10, nn.Sigmoid, gain(0.5)), batch()), SMALL
    )  # EF101: no weights would help


@pytest.mark.parametrize(("short", "alarm"), [(0.74, False), (0.76, True)])
def test_the_threshold_leaves_one_layer_out(short: float, alarm: bool) -> None:
    """Five layers of gain 10^−short behind identity-like activations: four of them count."""
    flow = chain(mlp(5, "tanh", weights=10.0**-short, slope=1.0))
    assert bool(diagnose(flow, select=SMALL).findings) is alarm


# too large


def test_unit_variance_without_normalisation() -> None:
    finding = only(classify(network(4, nn.ReLU, wide), batch()), LARGE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.INIT_TOO_LARGE)
    output = measure(network(4, nn.ReLU, wide), batch()).rms("activation")["6"]
    assert finding.evidence[0].value == pytest.approx(math.log10(output), abs=0.3)


def test_near_misses_of_large_weights() -> None:
    assert silent(classify(network(20, nn.ReLU, wide, norm=nn.BatchNorm1d), batch()), LARGE)
    assert silent(classify(network(20, nn.ReLU, he), batch()), LARGE)
    assert silent(classify(network(2, nn.ReLU, wide), batch()), LARGE)
    assert silent(classify(network(6, nn.Tanh, wide), batch()), LARGE)  # bounded: saturation, EF201


@pytest.mark.parametrize(("excess", "alarm"), [(0.59, False), (0.61, True)])
def test_the_threshold_of_growth(excess: float, alarm: bool) -> None:
    flow = chain(mlp(5, "identity", weights=10.0**excess, slope=1.0))
    assert bool(diagnose(flow, select=LARGE).findings) is alarm


# symmetric


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: nn.init.constant_(weight, value)


def symmetric(program: Program) -> Finding:
    return only(program, SYMMETRIC)


def test_a_constant_start_keeps_units_equal() -> None:
    finding = symmetric(classify(network(3, nn.Tanh, constant(0.01)), batch()))
    assert (finding.severity, top(finding)) == (Severity.ERROR, CauseName.ZERO_INIT_SYMMETRY)
    assert finding.message == "The 128 units of 0 are copies of each other and get equal gradients."


def test_units_are_still_equal_after_training() -> None:
    model = network(3, nn.Tanh, constant(0.01))
    program = classify(model, batch())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        assert program.loss is not None
        program.loss(model(program.inputs)).backward()
        optimizer.step()
    assert symmetric(program).severity is Severity.ERROR


def test_half_of_the_units_copied() -> None:
    model = network(2, nn.ReLU, he, units=64)
    weight, _, last, _ = model.parameters()
    with torch.no_grad():
        weight[:40] = weight[:1]
        last[:, :40] = last[:, :1]
    finding = symmetric(classify(model, batch()))
    assert finding.severity is Severity.WARNING
    assert finding.message.startswith("62 % of the 64 units")


def test_near_misses_of_symmetry() -> None:
    one = network(3, nn.Tanh, glorot)
    nn.init.constant_(one[0].weight, 0.1)  # type: ignore[arg-type]
    assert silent(classify(one, batch()), SYMMETRIC)  # its units are read by random weights
    assert silent(classify(network(3, nn.ReLU, he), batch()), SYMMETRIC)
    logistic = initialised(nn.Linear(64, 10), nn.init.zeros_)
    labels = torch.zeros(128, dtype=torch.long)
    few = Program(logistic, batch(), lambda output: nn.functional.cross_entropy(output, labels))
    assert silent(few, SYMMETRIC)  # nine classes of ten are not in the batch
    dropped = network(3, lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), constant(0.01))
    assert judge(classify(dropped, batch()), SYMMETRIC).findings == ()


def test_a_flow_without_the_column_cannot_be_judged() -> None:
    diagnosis = diagnose(chain(mlp(3, "relu", weights=1.4, slope=0.7)), select=SYMMETRIC)
    assert diagnosis.skipped[0].reason == "the Flow does not compare the rows of weights and gradients"
