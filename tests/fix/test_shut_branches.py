"""Residual branches are found by their sums; nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import evenflow as ef
from evenflow.fix.branches import BranchesError, branches
from evenflow.fix.remedies.shut_branches import ShutBranches
from evenflow.fix.remedy import Case
from evenflow.surgery import Fixup
from tests.fix import programs


def _body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


class _Block(nn.Module):
    """x + body(x), written in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.other, self.how = _body(), _body(), how
        self.bias, self.short = nn.Parameter(torch.zeros(32)), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            y: Tensor = self.body(x)
            y += x
            return y
        other = {"sum": x, "bias": self.bias, "product": 0.0, "two": 0.0, "shortcut": 0.0}[self.how]
        if self.how == "two":
            return torch.add(self.body(x), self.other(x))
        if self.how == "product":
            return x * self.body(x)
        return torch.relu((self.short(x) if self.how == "shortcut" else other) + self.body(x))


def _case(program: ef.Program) -> Case:
    with torch.random.fork_rng(devices=[]):
        return Case(program, ef.Report(None, None), program.start(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("sum", True),
        ("in place", True),
        ("shortcut", True),
        ("bias", False),
        ("product", False),
        ("two", False),
    ],
)
def test_a_branch_is_what_is_added_to_a_stream(how: str, found: bool) -> None:
    program = programs.program(lambda seed: nn.Sequential(_Block(how), _Block(how), nn.Linear(32, 4)))
    state = torch.get_rng_state()
    assert branches(_case(program)) == (["0.body", "1.body"] if found else [])
    assert torch.equal(torch.get_rng_state(), state)


def test_fixup_is_for_nets_without_norms_and_makes_the_blocks_an_identity() -> None:
    def build(seed: int) -> nn.Module:
        return nn.Sequential(_Block("sum"), _Block("sum"), nn.Linear(32, 4))

    (patch,) = ShutBranches().patches(_case(programs.program(build)))
    assert patch.edits == (Fixup(("0.body", "1.body")),)
    model, x = patch.apply(build(0)), torch.randn(5, 32).relu()
    assert torch.equal(model[:2](x), x)
    normed = programs.program(lambda seed: nn.Sequential(build(seed), nn.LayerNorm(4)))
    assert list(ShutBranches().patches(_case(normed))) == []
    plain = programs.program(programs.chain(3, nn.ReLU))
    assert list(ShutBranches().patches(_case(plain))) == []


def test_a_program_that_cannot_be_run_says_why_its_branches_are_not_known() -> None:
    def loss(model: nn.Module, batch: programs.Batch) -> Tensor:
        raise ValueError("no such column")

    program = programs.program(lambda seed: nn.Sequential(_Block("sum"), nn.Linear(32, 4)))
    assert branches(_case(program)) == ["0.body"]
    with pytest.raises(BranchesError, match="ValueError: no such column"):
        branches(_case(replace(program, loss=loss)))
    (patch,) = ShutBranches().patches(_case(replace(program, loss=loss)))
    assert not patch.touches
    assert patch.describe().startswith("if the model has residual branches, try Fixup on them")
    assert patch.describe().endswith("ValueError: no such column")


def test_of_many_branches_the_first_is_named() -> None:
    assert Fixup(("a", "b")).describe() == "residual branches at 'a' and 'b' start by Fixup"
    assert Fixup(("a", "b", "c")).describe() == "residual branches at 'a' and 2 more start by Fixup"
