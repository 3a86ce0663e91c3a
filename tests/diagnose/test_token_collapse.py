"""EF204: attention without skips makes all tokens alike; with them it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import CauseName, Severity
from tests.diagnose.judging import only, silent, top
from tests.diagnose.programs import Program, classify

RULE = "EF204"


class Mixer(nn.Module):
    """Attention blocks with or without skips, between two layers per token."""

    def __init__(self, blocks: int, *, skip: bool, fused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 32)
        self.blocks = nn.ModuleList(
            nn.MultiheadAttention(32, 4, batch_first=True, dropout=0.0) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(blocks))
        self.skip, self.fused, self.last, self.head = skip, fused, nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            y = norm(block(x, x, x, need_weights=not self.fused)[0])
            x = x + y if self.skip else y
        return self.head(self.last(x).tanh().mean(1))


def program(blocks: int, **options: bool) -> Program:
    return classify(Mixer(blocks, **options), torch.randn(4, 12, 32))


@pytest.mark.parametrize("fused", [False, True])
def test_attention_without_skips_loses_its_tokens(fused: bool) -> None:
    finding = only(program(6, skip=False, fused=fused), RULE)
    assert (finding.severity, top(finding)) == (Severity.WARNING, CauseName.ATTENTION_COLLAPSE)
    assert "6 attention ops" in finding.causes[0].evidence
    assert finding.remedies[0] == "Put a skip connection around every attention."


def test_with_skips_or_few_blocks_it_keeps_them() -> None:
    assert silent(program(6, skip=True), RULE)
    assert silent(program(1, skip=False), RULE)


def test_equal_tokens_prove_nothing() -> None:
    tokens = torch.randn(4, 1, 32).expand(-1, 12, -1)
    assert silent(classify(Mixer(6, skip=False), tokens), RULE)


def test_a_model_without_attention_is_silent() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(32, 10))
    assert silent(classify(model, torch.randn(6, 4, 8)), RULE)
