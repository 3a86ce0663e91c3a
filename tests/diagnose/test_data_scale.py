"""EF503 to EF507: what the network reads, and what its loss makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow
from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.diagnose.rules.bounded_output import _unreached
from evenflow.flow import Stats
from evenflow.measure.first import first_flows
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, batch, classify, he, images
from tests.diagnose.programs import mlp as network

INPUT, TARGET, BOUNDED, BROADCAST, IGNORED = "EF503", "EF504", "EF505", "EF506", "EF507"


# inputs


def pixels(size: int = 64) -> Tensor:
    return torch.randint(0, 256, (size, 64)).float()


class Scaled(nn.Module):
    """A net that treats its input first."""

    def __init__(self, treat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.treat, self.net = treat, network(3, nn.ReLU, he)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.treat(x))


def test_raw_pixels() -> None:
    finding = only(classify(network(3, nn.ReLU, he), pixels()), INPUT)
    assert (finding.severity, top(finding), finding.site) == (Severity.WARNING, CauseName.UNSCALED_INPUT, "0")
    assert finding.evidence[0].value == pytest.approx(float(pixels().square().mean().sqrt()), rel=0.05)


def test_pixels_that_are_scaled_before_or_inside_the_model() -> None:
    assert silent(classify(network(3, nn.ReLU, he), pixels() / 255), INPUT)
    assert silent(classify(Scaled(lambda x: x / 255), pixels()), INPUT)
    assert silent(classify(Scaled(lambda x: (x.byte().float() - 128) / 74), pixels()), INPUT)
    assert only(classify(Scaled(lambda x: x * 2), pixels()), INPUT).severity is Severity.WARNING


def test_a_normalisation_takes_the_scale_away() -> None:
    assert silent(classify(nn.Sequential(nn.BatchNorm1d(64), *network(3, nn.ReLU, he)), pixels()), INPUT)
    assert silent(classify(network(3, nn.ReLU, he, norm=nn.LayerNorm), pixels()), INPUT)
    convolution = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    assert silent(classify(convolution, 128 + 70 * images()), INPUT)


def test_indices_have_no_scale() -> None:
    model = nn.Sequential(nn.EmbeddingBag(1000, 64), nn.Linear(64, 10))
    assert silent(classify(model, torch.randint(0, 1000, (64, 12))), INPUT)


@pytest.mark.parametrize(
    ("size", "severity"),
    [(9.5, None), (10.5, Severity.NOTE), (31.0, Severity.NOTE), (32.5, Severity.WARNING)],
)
def test_the_thresholds_of_inputs(size: float, severity: Severity | None) -> None:
    x = size * batch().sign()
    found = judge(classify(network(3, nn.ReLU, he), x), INPUT).findings
    assert [finding.severity for finding in found] == ([severity] if severity else [])


# targets


def regression(size: float, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> Program:
    target = size * torch.randn(128, 1).sign()
    return Program(network(3, nn.ReLU, he, outputs=1), batch(), lambda output: loss(output, target))


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.huber_loss,
        lambda output, target: (output - target).square().mean(),
        lambda output, target: (target - output).abs().mean(),
    ],
)
def test_targets_in_the_thousands(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    finding = only(regression(1e5, loss), TARGET)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.UNSCALED_TARGET)
    assert silent(regression(1.0, loss), TARGET)


def test_house_prices_in_thousands_are_a_note() -> None:
    assert only(regression(24.0), TARGET).severity is Severity.NOTE


def test_an_output_of_the_targets_size_is_fine() -> None:
    program = regression(1e5)
    head = program.model[-1]  # type: ignore[index]
    nn.init.constant_(head.bias, 1e5)
    assert silent(program, TARGET)


def test_a_margin_is_no_target() -> None:
    sign = torch.randn(128, 1).sign() * 1e5
    model = network(3, nn.ReLU, he, outputs=1)
    assert silent(Program(model, batch(), lambda output: F.relu(1 - sign * output).mean()), TARGET)


# bounded outputs


def ending(last: nn.Module, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> Program:
    model = nn.Sequential(network(3, nn.ReLU, he, outputs=target.shape[-1]), last)
    return Program(model, batch(), lambda output: loss(output, target))


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh(), nn.Softmax(-1)])
def test_a_bounded_output_for_an_unbounded_target(last: nn.Module) -> None:
    finding = only(ending(last, torch.randn(128, 2)), BOUNDED)
    assert (finding.severity, finding.site) == (Severity.WARNING, "1")
    assert top(finding) is CauseName.WRONG_LOSS_OR_OUTPUT
    assert silent(ending(nn.Identity(), torch.randn(128, 2)), BOUNDED)


def test_targets_within_the_range() -> None:
    assert silent(ending(nn.Sigmoid(), torch.rand(128, 2)), BOUNDED)
    assert silent(ending(nn.Tanh(), 2 * torch.rand(128, 2) - 1), BOUNDED)
    assert silent(ending(nn.Tanh(), torch.rand(128, 2) - 0.5), BOUNDED)
    assert only(ending(nn.Sigmoid(), torch.rand(128, 2) - 1), BOUNDED).severity is Severity.WARNING


def test_targets_of_which_a_part_is_out_of_reach_for_certain() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(128, 1)
    finding = only(ending(nn.Sigmoid(), signs), BOUNDED)
    assert finding.evidence[0].text == (
        "Targets of mean 0 and RMS 1 leave 38 % of their variance at least, whatever the outputs are."
    )
    assert silent(ending(nn.Tanh(), signs), BOUNDED)
    assert silent(ending(nn.Sigmoid(), 1.2 * torch.rand(128, 2) - 0.1), BOUNDED)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_to_be_out_of_reach_is_never_more_than_is(low: float, high: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    targets = draws.normal(draws.normal(), draws.exponential(), 1000) ** draws.choice([1, 2])
    left = float(np.mean((targets - targets.clip(low, high)) ** 2) / targets.var())
    stats = Stats(1000, float(targets.mean()), float(np.mean(targets**2)))
    said = _unreached(stats, low, high)
    assert 0.0 <= said <= left * (1.0 + 1e-9)
    assert said > 0.0 or left < 0.7


@pytest.mark.parametrize("beyond", [1, 3])
def test_one_target_in_a_hundred_may_be_an_outlier(beyond: int) -> None:
    target = torch.rand(128, 2)
    target.view(-1)[:beyond] = 5.0
    assert silent(ending(nn.Sigmoid(), target), BOUNDED) is (beyond == 1)


def test_labels_that_are_no_probabilities() -> None:
    loss = F.binary_cross_entropy_with_logits
    signs = torch.randn(128, 1).sign()
    assert only(ending(nn.Identity(), signs, loss), BOUNDED).severity is Severity.ERROR
    assert only(ending(nn.Identity(), 2 * (signs > 0).float(), loss), BOUNDED).severity is Severity.ERROR
    assert silent(ending(nn.Identity(), (signs > 0).float(), loss), BOUNDED)


def test_the_weight_of_a_class_is_no_label() -> None:
    weight = torch.tensor([20.0])
    labels = (torch.randn(128, 1) > 0).float()
    program = ending(
        nn.Identity(), labels, lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=weight)
    )
    assert silent(program, BOUNDED)


# shapes


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, lambda o, t: (o - t).pow(2).mean()])
def test_a_column_against_a_row(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, target = network(3, nn.ReLU, he, outputs=1), torch.randn(128)
    finding = only(Program(model, batch(), lambda output: loss(output, target)), BROADCAST)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.WRONG_LOSS_OR_OUTPUT)
    assert silent(Program(model, batch(), lambda output: loss(output.squeeze(-1), target)), BROADCAST)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.l1_loss])
def test_a_column_against_a_row_that_comes_with_the_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, target = batch(), torch.randn(128)

    def found(target: Tensor) -> list[str]:
        training = evenflow.Program(
            build=lambda seed: network(3, nn.ReLU, he, outputs=1),
            optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.1),
            batches=lambda seed: [(x, target)],
            loss=lambda model, pair: loss(model(pair[0]), pair[1]),
            steps=1,
        )
        (flow,) = first_flows(training, 0).values()
        return [one.code for one in diagnose(flow, select=BROADCAST).alarms]

    assert found(target) == [BROADCAST]
    assert found(target.unsqueeze(-1)) == []


def test_losses_over_pairs_of_outputs_are_left_alone() -> None:
    model = network(3, nn.ReLU, he, outputs=1)
    pairs = Program(model, batch(), lambda output: (output - output.T).abs().mean())
    assert silent(pairs, BROADCAST)
    square = Program(
        network(3, nn.ReLU, he, outputs=128), batch(), lambda o: F.mse_loss(o, torch.randn(128, 128))
    )
    assert silent(square, BROADCAST)


# samples


def test_a_loss_that_reads_a_part_of_the_batch() -> None:
    model, labels = network(3, nn.ReLU, he), torch.randint(0, 10, (128,))
    part = Program(model, batch(), lambda output: F.cross_entropy(output[:32], labels[:32]))
    finding = only(part, IGNORED)
    assert (finding.severity, finding.evidence[0].value) == (Severity.NOTE, 0.75)
    assert silent(classify(model, batch()), IGNORED)
    halves = Program(
        model,
        batch(),
        lambda o: F.cross_entropy(o[:64], labels[:64]) + F.cross_entropy(o[64:], labels[64:]),
    )
    assert silent(halves, IGNORED)


def test_other_axes_are_no_samples() -> None:
    model, labels = network(3, nn.ReLU, he), torch.randint(0, 5, (128,))
    assert silent(Program(model, batch(), lambda output: F.cross_entropy(output[:, :5], labels)), IGNORED)


class Views(nn.Module):
    """Cosines of each sample with all, or with other vectors, as logits."""

    def __init__(
        self, of: Callable[[Tensor], Tensor], normalise: bool = True, others: Tensor | None = None
    ) -> None:
        super().__init__()
        self.net, self.of, self.normalise, self.others = nn.Linear(64, 16), of, normalise, others

    def forward(self, x: Tensor) -> Tensor:
        a = self.net(x)
        if self.normalise:
            a = F.normalize(a, dim=1)
        return self.of(a @ (a if self.others is None else self.others).T)


def apart(model: nn.Module, samples: int = 96) -> Program:
    target = torch.arange(samples)
    return Program(model, torch.randn(samples, 64), lambda y: F.cross_entropy(y, target))


def test_cosines_need_a_temperature() -> None:
    """Wang et al. 2017: ln(1 + 95/e²) = 2.63 is left of ln 96 = 4.56."""
    finding = only(apart(Views(lambda c: c)), BOUNDED)
    assert top(finding) is CauseName.WRONG_LOSS_OR_OUTPUT
    assert finding.evidence[0].value == pytest.approx(math.log1p(95 / math.e**2) / math.log(96), rel=1e-5)
    assert only(apart(Views(lambda c: c * 0.1)), BOUNDED).evidence[0].value == pytest.approx(
        math.log1p(95 * math.exp(-0.2)) / math.log(96), rel=1e-5
    )
    assert only(apart(Views(lambda c: torch.tanh(c / 0.01))), BOUNDED).severity is Severity.WARNING


def test_logits_that_may_lie_far_apart() -> None:
    scale = nn.Parameter(torch.tensor(1.0))
    learned = Views(lambda c: c * scale)
    learned.register_parameter("scale", scale)
    assert silent(apart(learned), BOUNDED), "a temperature may be learned"
    assert silent(apart(Views(lambda c: c / 0.1)), BOUNDED)
    assert silent(apart(Views(lambda c: c * 0.1, normalise=False)), BOUNDED)
    data = torch.randn(96, 16)
    assert silent(apart(Views(lambda c: c, others=data)), BOUNDED), "vectors of no fixed length"
    assert silent(apart(Views(lambda c: c), samples=10), BOUNDED), "ln(1 + 9/e²) is a third of ln 10"
