"""The recipe for plain depth: for which nets it goes before all other remedies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

import evenflow as ef
from evenflow.diagnose import diagnose
from evenflow.fix.candidates import proposed
from evenflow.fix.remedies.shape import Shape
from evenflow.fix.remedy import Case
from evenflow.measure.first import first_flows
from evenflow.surgery import InsertNorm, InsertSkip, Patch
from tests.fix import programs


def _case(depth: int, patch: Patch | None = None) -> Case:
    program = replace(programs.program(programs.chain(depth, nn.Tanh)), steps=1)
    if patch is not None:
        program = patch.program(program)
    flows = first_flows(program)
    return Case(program, ef.Report(flows[""], diagnose(flows[""]), flows=flows), program.start(0))


def test_on_a_deep_plain_net_the_whole_recipe_goes_first() -> None:
    first = [one for one in proposed(_case(60))[0] if one.first]
    assert [one.remedy for one in first] == ["shape", "shape"]
    assert [edit.name for edit in first[0].patch.edits][:2] == ["shape_activation", "reinitialise"]
    assert first[0].reason


@pytest.mark.parametrize(
    ("depth", "patch"),
    [
        pytest.param(30, None, id="not that deep"),
        pytest.param(60, Patch([InsertSkip("plain")]), id="with skips"),
        pytest.param(60, Patch([InsertNorm("layer")]), id="with norms"),
    ],
)
def test_elsewhere_it_waits_its_turn(depth: int, patch: Patch | None) -> None:
    assert Shape().first(_case(depth, patch)) == 0
