"""EF205: scores that are not divided by √d look at one key; trained heads may, here and there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.flow import Flow
from evenflow.measure import measure
from tests.diagnose.judging import judge, only, silent, top
from tests.diagnose.programs import Program, classify

RULE = "EF205"


class Heads(nn.Module):
    """Attention layers one after another, each with a scale for its scores."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.scales = scales
        self.qkv = nn.ModuleList(nn.Linear(64, 192) for _ in scales)
        self.head = nn.Linear(64, 10)
        for weight in self.qkv.parameters():
            nn.init.normal_(weight, std=64**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.qkv, self.scales, strict=True):
            q, k, v = layer(torch.nn.functional.layer_norm(x, (64,))).chunk(3, -1)
            x = x + (scale * q @ k.mT).softmax(-1) @ v
        return self.head(x.mean(1))


def program(*scales: float) -> Program:
    return classify(Heads(*scales), torch.randn(4, 64, 64))


def test_scores_without_their_scale_take_the_largest_key() -> None:
    finding = only(program(1.0, 1.0), RULE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.ATTENTION_COLLAPSE)
    assert "So it is in 2 of 2 attention ops" in finding.evidence[1].text
    assert finding.causes[0].evidence.startswith("Its scores reach ")
    assert silent(program(1 / 8, 1 / 8), RULE)


def test_attention_that_is_almost_even_is_how_training_begins() -> None:
    assert silent(program(1e-6, 1e-6), RULE)


def test_one_sharp_layer_of_four_is_a_note() -> None:
    assert only(program(1.0, 0.1, 0.1, 0.1), RULE).severity is Severity.NOTE


def test_where_the_threshold_comes_from() -> None:
    """Normal scores of standard deviation 8 over 64 keys."""
    p = (8.0 * torch.randn(20_000, 64)).softmax(-1)
    entropy = float(torch.special.entr(p).sum(-1).mean()) / float(torch.tensor(64.0).log())
    assert entropy == pytest.approx(0.138, abs=0.002)


def test_a_router_is_no_attention() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts, self.head = nn.Linear(16, 4), nn.Linear(16, 64), nn.Linear(16, 10)
            nn.init.normal_(self.gate.weight, std=10.0)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.gate(x).softmax(-1)
            made = self.experts(x).unflatten(-1, (4, 16))
            return self.head((weights.unsqueeze(-1) * made).sum(-2).mean(1))

    assert silent(classify(Routed(), torch.randn(8, 6, 16)), RULE)


@pytest.mark.parametrize(("entropy", "alarm"), [(0.21, False), (0.19, True)])
def test_the_threshold(entropy: float, alarm: bool) -> None:
    made = program(0.1)
    flow = measure(made.model, made.inputs, made.loss)
    rows = [replace(row, entropy=entropy) if row.entropy is not None else row for row in flow]
    assert bool(diagnose(Flow(rows, "measured"), select=RULE).findings) is alarm
    without = [replace(row, entropy=None) for row in flow]
    diagnosis = diagnose(Flow(without, "measured"), select=RULE)
    assert diagnosis.skipped[0].reason == "the Flow does not hold the entropy of attention"


def test_inputs_off_scale_close_the_attention_of_pytorch_itself() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=False, dropout=0.0)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(320, 10))
    tokens = torch.randn(4, 10, 32)
    assert only(classify(model, 300.0 * tokens), RULE).severity is Severity.WARNING
    assert judge(classify(model, tokens), RULE).findings == ()
