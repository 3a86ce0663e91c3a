"""EF502: every misfit of output and loss, beside the program that does it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, Sequence, batch, he
from tests.diagnose.programs import mlp as network

RULE = "EF502"
CLASSES = torch.arange(128) % 10
YES = (CLASSES[:, None] > 4).float()
ONE_HOT = F.one_hot(CLASSES, 10).float()


@dataclass(frozen=True)
class Case:
    """An output function, a loss, and what must be said of them."""

    output: nn.Module | None
    loss: Callable[[Tensor], Tensor]
    severity: Severity | None
    message: str = ""
    units: int = 10


def cross_entropy(z: Tensor) -> Tensor:
    return F.cross_entropy(z, CLASSES)


def nll(z: Tensor) -> Tensor:
    return F.nll_loss(z, CLASSES)


def bce_logits(z: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, YES)


def bce(p: Tensor) -> Tensor:
    return F.binary_cross_entropy(p, YES)


def keras_categorical(p: Tensor) -> Tensor:
    p = p / p.sum(1, keepdim=True)
    return -(ONE_HOT * p.clamp(1e-7, 1 - 1e-7).log()).sum(1).mean()


ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
CASES = {
    "logits to cross_entropy": Case(None, cross_entropy, None),
    "softmax twice": Case(
        nn.Softmax(1),
        cross_entropy,
        WARNING,
        "Softmax 1 feeds cross_entropy, which expects logits and applies softmax itself.",
    ),
    "sigmoid to cross_entropy": Case(
        nn.Sigmoid(),
        cross_entropy,
        WARNING,
        "Sigmoid 1 feeds cross_entropy, which expects logits and applies softmax itself.",
    ),
    "log-softmax twice": Case(
        nn.LogSoftmax(1),
        cross_entropy,
        NOTE,
        "LogSoftmax 1 feeds cross_entropy, which applies log-softmax again; that changes nothing.",
    ),
    "relu to cross_entropy": Case(
        nn.ReLU(), cross_entropy, WARNING, "ReLU 1 feeds cross_entropy: no logit can be negative."
    ),
    "leaky relu to cross_entropy": Case(nn.LeakyReLU(), cross_entropy, None),
    "cross_entropy over one unit": Case(
        None,
        lambda z: F.cross_entropy(z, 0 * CLASSES),
        ERROR,
        "The output is constant: cross_entropy over one unit is always 0.",
        units=1,
    ),
    "softmax over one unit": Case(
        nn.Softmax(1), bce, ERROR, "The output is constant: softmax over one unit is always 1.", units=1
    ),
    "softmax over one unit under a squared error": Case(
        nn.Softmax(1),
        lambda p: F.mse_loss(p, YES),
        ERROR,
        "The output is constant: softmax over one unit is always 1.",
        units=1,
    ),
    "log-softmax to nll": Case(nn.LogSoftmax(1), nll, None),
    "softmax and log to nll": Case(nn.Softmax(1), lambda p: nll(p.log()), None),
    "softmax to nll": Case(
        nn.Softmax(1),
        nll,
        WARNING,
        "Softmax 1 gives probabilities to nll_loss, which expects log-probabilities.",
    ),
    "logits to nll": Case(
        None, nll, ERROR, "Linear 0.2 gives raw outputs to nll_loss, which expects log-probabilities."
    ),
    "logits to bce with logits": Case(None, bce_logits, None, units=1),
    "sigmoid to bce": Case(nn.Sigmoid(), bce, None, units=1),
    "sigmoid to bce with logits": Case(
        nn.Sigmoid(),
        bce_logits,
        WARNING,
        "Sigmoid 1 feeds binary_cross_entropy_with_logits, which expects logits and applies sigmoid itself.",
        units=1,
    ),
    "tanh to bce with logits": Case(
        nn.Tanh(),
        bce_logits,
        WARNING,
        "Tanh 1 feeds binary_cross_entropy_with_logits, which expects logits and applies sigmoid itself.",
        units=1,
    ),
    "relu to bce with logits": Case(
        nn.ReLU(),
        bce_logits,
        WARNING,
        "ReLU 1 feeds binary_cross_entropy_with_logits: no logit can be negative.",
        units=1,
    ),
    "a column picked from softmax": Case(
        nn.Softmax(1),
        lambda p: F.binary_cross_entropy_with_logits(p[:, 1], YES[:, 0]),
        WARNING,
        "Softmax 1 feeds binary_cross_entropy_with_logits, which expects logits and applies sigmoid itself.",
        units=2,
    ),
    "scaled tanh to cross_entropy": Case(nn.Tanh(), lambda z: cross_entropy(20 * z), None),
    "linear under a squared error": Case(None, lambda z: F.mse_loss(z, ONE_HOT), None),
    "sigmoid under a squared error": Case(
        nn.Sigmoid(), lambda p: F.mse_loss(p, ONE_HOT), NOTE, "Sigmoid 1 feeds a squared error."
    ),
    "softmax under a squared error": Case(
        nn.Softmax(1), lambda p: F.mse_loss(p, ONE_HOT), NOTE, "Softmax 1 feeds a squared error."
    ),
    "sigmoid under a squared error by hand": Case(
        nn.Sigmoid(), lambda p: ((p - ONE_HOT) ** 2).mean(), NOTE, "Sigmoid 1 feeds a squared error."
    ),
    "saturated sigmoid under a squared error": Case(
        nn.Sequential(nn.Linear(10, 10), nn.Sigmoid()).requires_grad_(False),
        lambda p: F.mse_loss(p, ONE_HOT),
        WARNING,
        "Sigmoid 1.1 feeds a squared error.",
    ),
    "softmax to a cross-entropy by hand": Case(nn.Softmax(1), keras_categorical, None),
    "relu to a cross-entropy by hand": Case(
        nn.Sequential(nn.ReLU(), nn.Dropout(0.0)),
        keras_categorical,
        WARNING,
        "The loss takes the logarithm of ReLU 1.0, whose outputs are no probabilities.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_loss(name: str) -> None:
    case = CASES[name]
    body = network(2, nn.ReLU, he, outputs=case.units)
    output = [] if case.output is None else [case.output]
    if name.startswith("saturated"):
        assert case.output is not None
        nn.init.normal_(case.output[0].weight, std=50.0)  # type: ignore[index]
    program = Program(nn.Sequential(body, *output), batch(), case.loss)
    if case.severity is None:
        assert silent(program, RULE)
    else:
        finding = only(program, RULE)
        assert (finding.severity, finding.message) == (case.severity, case.message)
        assert top(finding) is CauseName.WRONG_LOSS_OR_OUTPUT


def test_the_text_of_a_finding() -> None:
    program = Program(nn.Sequential(nn.Linear(64, 10), nn.Softmax(1)), batch(), cross_entropy)
    finding = only(program, RULE)
    assert (finding.site, finding.evidence[0].text, finding.remedies) == (
        "1",
        "Its outputs lie between 0 and 1: with 10 classes no probability can exceed 0.23.",
        ("Remove it and give cross_entropy the logits; apply softmax only to predict.",),
    )
    program = Program(nn.Sequential(nn.Linear(64, 1), nn.Sigmoid()), batch(), bce_logits)
    assert only(program, RULE).evidence[0].text == (
        "Its outputs lie between 0 and 1: probabilities lie between 0.50 and 0.73."
    )


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_largest_probability_of_a_softmax_of_a_softmax(classes: int) -> None:
    model = nn.Sequential(nn.Linear(64, classes), nn.Softmax(1))
    labels = torch.zeros(128).long()
    finding = only(Program(model, batch(), lambda p: F.cross_entropy(p, labels)), RULE)
    best = F.softmax(F.one_hot(torch.tensor(0), classes).double(), 0)[0]
    assert finding.evidence[0].text.endswith(f"no probability can exceed {best:.2f}.")


def test_softmax_over_one_key_of_attention_is_no_output() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)

    class OneToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = layer, nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0][:, 0])

    labels = torch.arange(8)
    assert silent(Program(OneToken(), torch.randn(8, 1, 16), lambda z: F.cross_entropy(z, labels)), RULE)


def test_a_dead_output_ends_the_gradient() -> None:
    model = nn.Sequential(nn.Linear(64, 1), nn.ReLU())
    nn.init.constant_(model[0].bias, -50.0)  # type: ignore[arg-type]
    finding = only(Program(model, batch(), lambda z: F.mse_loss(z, YES)), RULE)
    assert (finding.severity, finding.site) == (Severity.WARNING, "1")
    assert finding.message == "The gradient ends at ReLU 1: no layer receives any."
    assert finding.evidence[0].text == "relu is flat at all 128 entries of this batch."


def test_inputs_that_are_off_scale_are_blamed_for_an_output_that_is_flat() -> None:
    model = nn.Sequential(nn.Linear(64, 1), nn.Sigmoid())
    finding = only(Program(model, 1e4 * batch().abs(), lambda p: bce(p.clamp(1e-7, 1 - 1e-7))), RULE)
    assert top(finding) is CauseName.UNSCALED_INPUT


class Factors(nn.Module):
    """Products of two tables, summed: a factorisation."""

    def __init__(self, first: float, second: float, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(16, width), nn.Embedding(16, width)
        nn.init.normal_(self.first.weight, std=first)
        nn.init.normal_(self.second.weight, std=second)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) * self.second(x)).sum(-1)


def test_a_product_of_zeros_has_no_gradient_for_either() -> None:
    x, y = torch.randint(0, 16, (64,)), torch.randn(64)
    finding = only(Program(Factors(0.0, 0.0), x, lambda z: F.mse_loss(z, y)), RULE)
    assert finding.severity is Severity.ERROR
    assert top(finding) is CauseName.ZERO_INIT_SYMMETRY
    assert finding.evidence[0].text == (
        "Embedding first, Embedding second are all zeros, and each is the other's gradient: "
        "no step opens them."
    )
    assert silent(Program(Factors(0.0, 0.1), x, lambda z: F.mse_loss(z, y)), RULE), "the other one opens it"


def test_a_hinge_that_is_met_has_nothing_left_to_learn() -> None:
    finding = only(
        Program(nn.Linear(64, 1), batch(), lambda z: (z.abs() * 0 - 1 + 0 * z).relu().mean()), RULE
    )
    assert finding.severity is Severity.NOTE
    assert finding.evidence[0].text == "The loss is zero: nothing is left to learn from this batch."


def test_without_a_loss_there_is_nothing_to_misfit() -> None:
    layer = nn.LSTM(8, 16, batch_first=True)
    assert silent(Program(Sequence(layer, 16), torch.randn(4, 6, 8)), RULE)


def test_a_gradient_that_half_precision_rounds_to_zero_is_no_misfit_of_the_loss() -> None:
    def halved(scale: float) -> Program:
        model = network(3, nn.ReLU, he).half()
        return Program(model, batch().half(), lambda z: scale * cross_entropy(z.float()))

    finding = only(halved(1e-6), RULE)
    assert top(finding) is CauseName.PRECISION_UNDERFLOW
    assert "whose smallest number is 6e-08" in finding.causes[0].evidence
    assert silent(halved(1.0), RULE)


@pytest.mark.parametrize("scale", [1.0, 0.0, 30.0])
@pytest.mark.parametrize("logarithm", [True, False])
def test_a_softmax_over_the_samples(scale: float, logarithm: bool) -> None:
    """Of logits that are far apart the mean logarithm proves nothing, the mean probability always does."""

    def said(axis: int) -> list[str]:
        body = network(2, nn.ReLU)
        with torch.no_grad():
            body.get_parameter("2.weight").mul_(scale)
        end = nn.LogSoftmax(axis) if logarithm else nn.Softmax(axis)
        program = Program(nn.Sequential(body, end), batch(), nll if logarithm else lambda p: nll(p.log()))
        return [one.message for one in judge(program, RULE).alarms if "receives" not in one.message]

    name = "LogSoftmax" if logarithm else "Softmax"
    wrong = [f"{name} 1 adds up to one over the samples of the batch, not over the classes."]
    assert said(0) == ([] if logarithm and scale > 1.0 else wrong)
    assert said(1) == []
