"""Deep post-LN stacks: where pre-LN goes before all other remedies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import evenflow as ef
from evenflow.diagnose import Cause, CauseName, Finding, Severity, Symptom, diagnose
from evenflow.fix.candidates import proposed
from evenflow.fix.remedies.pre_norm import Prenormalise
from evenflow.fix.remedy import Case
from evenflow.lab.networks import Transformer
from evenflow.measure.first import first_flows
from tests.fix import programs


def _case(blocks: int, arrangement: str) -> Case:
    tokens = torch.randint(8, (2, 4), generator=torch.Generator().manual_seed(0))

    def build(seed: int) -> Transformer:
        return Transformer(
            vocabulary=8,
            longest=4,
            width=8,
            heads=1,
            blocks=blocks,
            arrangement=arrangement,  # type: ignore[arg-type]
        )

    program = replace(
        programs.program(build, steps=1),
        batches=lambda seed: [(tokens, tokens)],
        loss=lambda model, batch: torch.nn.functional.cross_entropy(
            model(batch[0]).flatten(0, 1), batch[1].flatten()
        ),
        metric=None,
    )
    flows = first_flows(program)
    return Case(program, ef.Report(flows[""], diagnose(flows[""]), flows=flows), program.start(0))


def test_in_a_deep_post_ln_stack_pre_ln_goes_first() -> None:
    first = [one for one in proposed(_case(14, "post"))[0] if one.first]
    assert [[edit.name for edit in one.patch.edits] for one in first] == [["pre_norm"]]
    assert first[0].reason == "post ln depth"


def test_it_goes_first_beside_an_alarm_of_no_known_cause() -> None:
    case = _case(14, "post")
    unknown = Cause(CauseName.UNKNOWN, 1.0, "")
    alarm = Finding("EF101", Symptom.VANISHING_GRADIENT, Severity.ERROR, "position", "", causes=(unknown,))
    notes = case.report.diagnosis
    report = replace(case.report, diagnosis=replace(notes, findings=(alarm, *notes.findings)))
    first = [one for one in proposed(replace(case, report=report))[0] if one.first]
    assert [one.remedy for one in first] == ["pre_norm"]


@pytest.mark.parametrize(
    ("blocks", "arrangement"),
    [pytest.param(6, "post", id="not that deep"), pytest.param(14, "pre", id="pre-LN")],
)
def test_elsewhere_it_waits_its_turn(blocks: int, arrangement: str) -> None:
    assert Prenormalise().first(_case(blocks, arrangement)) == 0
