"""EF701: the op that made the first NaN or infinity, and infinities that are no fault."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow
from tests.diagnose.chains import Op, chain
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Attention, Program, batch, classify, he, wide
from tests.diagnose.programs import mlp as network
from tests.diagnose.runs import Output, Weight, run

RULE = "EF701"


def test_the_text_of_a_finding() -> None:
    model = network(2, nn.ReLU, he, outputs=4)
    finding = only(Program(model, batch(), lambda z: z.relu().log().mean()), RULE)
    assert (finding.severity, finding.site) == (Severity.ERROR, "<loss>:log")
    assert finding.message == "The first NaN or infinity is made by log in the loss."
    assert finding.evidence[0].text.endswith(" of 512 entries at log in the loss are NaN or infinite.")
    assert finding.causes[0].evidence == (
        "log: log of 0 is −∞, of a negative number NaN; clamp its input from below."
    )
    assert finding.remedies == (finding.causes[0].evidence,)


def test_the_batch_itself() -> None:
    inputs = batch()
    inputs[3, 5] = math.nan
    finding = only(classify(network(3, nn.ReLU, he), inputs), RULE)
    assert (finding.site, finding.message) == ("0", "The batch holds NaN or infinity; Linear 0 reads it.")


def test_weights_that_were_lost_before() -> None:
    model = network(3, nn.ReLU, he)
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf  # type: ignore[operator]
    finding = only(classify(model, batch()), RULE)
    assert (finding.site, finding.message) == (
        "2.weight",
        "1 parameter already held NaN or infinity before this step: 2.weight.",
    )


def test_an_infinite_slope_in_backward() -> None:
    finding = only(Program(network(2, nn.ReLU, he), batch(), lambda z: z.relu().sqrt().mean()), RULE)
    assert finding.message == (
        "All activations are finite; the first NaN or infinity of backward is made by sqrt in the loss."
    )
    assert silent(Program(network(2, nn.ReLU, he), batch(), lambda z: (z.relu() + 1e-6).sqrt().mean()), RULE)


def test_a_mask_is_no_fault_and_a_row_that_is_masked_whole_is() -> None:
    causal = torch.ones(6, 6).triu(1).bool()
    tokens = torch.randn(8, 6, 32)
    assert silent(classify(Attention(causal), tokens), RULE)
    causal[2] = True
    finding = only(classify(Attention(causal), tokens), RULE)
    assert finding.message == "The first NaN or infinity is made by _softmax of the model itself."
    assert finding.causes[0].evidence == (
        "Its input holds rows that are masked as a whole; softmax over nothing but −∞ is NaN."
    )


def test_a_mask_is_not_taken_for_the_origin_of_what_came_later() -> None:
    model = Attention(torch.ones(6, 6).triu(1).bool())
    finding = only(Program(model, torch.randn(8, 6, 32), lambda z: z.relu().log().mean()), RULE)
    assert finding.site == "<loss>:log"


def test_an_infinity_that_nothing_reads_is_no_fault() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x)
            (1e3 * x).exp()
            return self.out(x)

    assert silent(classify(Spare(), batch()), RULE)


def test_of_several_readers_the_one_with_an_infinite_slope_is_named() -> None:
    def loss(z: Tensor) -> Tensor:
        z = z.relu()
        return (z * 2).mean() + z.sqrt().mean()

    assert only(Program(network(2, nn.ReLU, he), batch(), loss), RULE).site == "<loss>:sqrt"


@pytest.mark.parametrize(
    ("dtype", "size", "cause"),
    [(torch.float16, 3e3, CauseName.PRECISION_OVERFLOW), (torch.float32, 1e37, CauseName.INIT_TOO_LARGE)],
)
def test_an_overflow(dtype: torch.dtype, size: float, cause: CauseName) -> None:
    model = network(4, nn.ReLU, wide).to(dtype)
    finding = only(Program(model, (size * batch()).to(dtype), lambda z: z.float().mean()), RULE)
    assert top(finding) is cause


def test_a_gradient_that_leaves_float16() -> None:
    model = nn.Linear(64, 64).half()
    finding = only(
        Program(model, (3e4 * torch.rand(128, 64)).half(), lambda z: 50 * z.float().abs().sum()), RULE
    )
    assert (finding.site, top(finding)) == ("weight", CauseName.PRECISION_OVERFLOW)


def test_a_division_inside_the_model() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.out = nn.Linear(64, 64), nn.Linear(64, 10)
            nn.init.zeros_(self.inp.weight)
            nn.init.zeros_(self.inp.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x)
            return self.out(x / x.norm(dim=1, keepdim=True))

    finding = only(classify(Normalised(), batch()), RULE)
    assert finding.message == "The first NaN or infinity is made by div of the model itself."
    assert "division by 0" in finding.causes[0].evidence


def test_large_but_finite_is_silent() -> None:
    program = classify(network(3, nn.ReLU, he), 1e8 * batch())
    assert silent(program, RULE)
    assert silent(Program(network(3, nn.ReLU, he), batch(), lambda z: 1e20 * F.mse_loss(z, 0 * z)), RULE)


def test_a_flow_without_statistics_cannot_be_judged() -> None:
    assert diagnose(Flow([], "predicted"), select=RULE).skipped[0].reason == "the Flow holds no statistics"
    assert diagnose(chain([Op("addmm"), Op("relu")]), select=RULE).skipped == ()


def test_an_op_of_the_loss_that_left_its_domain_is_a_fault_of_the_loss() -> None:
    def by_hand(z: Tensor) -> Tensor:
        powers = (100.0 * z).exp()
        return -(powers / powers.sum(-1, keepdim=True)).log().mean()

    model = network(2, nn.ReLU, he)
    assert top(only(Program(model, 10.0 * batch(), by_hand), RULE)) is CauseName.WRONG_LOSS_OR_OUTPUT
    assert silent(Program(model, 10.0 * batch(), lambda z: -(100.0 * z).log_softmax(-1).mean()), RULE)


def test_a_gradient_that_was_no_number_when_it_came_from_a_loss_that_was_not_seen() -> None:
    def seen(size: float) -> list[CauseName]:
        made = run(2, Weight("0.weight"), Output("0", size=size, gradient=math.nan))
        return [cause.name for finding in diagnose(made, select=RULE).findings for cause in finding.causes]

    assert seen(1.0) == [CauseName.WRONG_LOSS_OR_OUTPUT]
    assert seen(1e25) == [CauseName.UNKNOWN], "its square overflows, so that any loss may"
