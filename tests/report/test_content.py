"""What a report says in words."""

from __future__ import annotations

import math

import pytest
from tests.report import samples

from evenflow.diagnose.finding import Cause, CauseName, Diagnosis, Finding, Severity, Skipped, Symptom
from evenflow.flow import Flow
from evenflow.report import ReportContent
from evenflow.report.content import facts, flagged, gaps, headline, severity, subject, verdict_word


def finding(
    level: Severity, site: str = "0", symptom: Symptom = Symptom.SATURATION, code: str = "EF1"
) -> Finding:
    return Finding(code, symptom, level, site, "It saturates.")


@pytest.mark.parametrize(
    ("diagnosis", "text", "worst"),
    [
        (Diagnosis(), "No problem found", None),
        (Diagnosis(skipped=(Skipped("EF2", "why"),)), "No problem found (1 rule could not judge)", None),
        (
            Diagnosis((finding(Severity.NOTE), finding(Severity.NOTE))),
            "No problem found; 2 notes: saturation",
            None,
        ),
        (samples.vanishing_diagnosis(), "1 error, 1 warning: vanishing gradient, saturation", Severity.ERROR),
        (
            Diagnosis((finding(Severity.WARNING), finding(Severity.NOTE, symptom=Symptom.NON_FINITE))),
            "1 warning, 1 note: saturation",
            Severity.WARNING,
        ),
    ],
)
def test_the_headline_counts_and_names_the_alarms(
    diagnosis: Diagnosis, text: str, worst: Severity | None
) -> None:
    assert headline(diagnosis) == text
    assert severity(diagnosis) is worst


def test_the_subject_says_where_the_numbers_come_from() -> None:
    assert subject(samples.vanishing()) == (
        "one batch, measured · with the prediction beside it · train mode · cpu"
    )
    predicted = ReportContent(samples.mlp(2, predicted=True), Diagnosis())
    assert subject(predicted).startswith("predicted, nothing was run")
    flow = samples.residual(1)
    half = Flow(flow.rows, "measured", {**flow.metadata, "training": False, "autocast": "bfloat16"})
    assert subject(ReportContent(half, Diagnosis())).endswith("eval mode · cpu · autocast bfloat16")


def test_the_facts_of_the_summary() -> None:
    told = {fact.label: (fact.value, fact.note) for fact in facts(samples.vanishing())}
    assert told == {
        "loss": ("2.411", ""),
        "gradient, loss → input": ("÷ 1.4e16", "−16.15 decades"),
        "parameters with a gradient": ("40 of 40", ""),
        "parameter format": ("float32", ""),
    }
    told = {fact.label: (fact.value, fact.note) for fact in facts(samples.healthy())}
    assert told["parameters with a gradient"] == ("25 of 27", "")


def test_facts_that_are_not_known_are_left_out() -> None:
    assert facts(ReportContent(Flow([], "measured"), Diagnosis())) == ()
    loss = {fact.label: fact.value for fact in facts(ReportContent(samples.non_finite(), Diagnosis()))}[
        "loss"
    ]
    assert loss == "nan"
    infinite = Flow([], "measured", {"loss": -math.inf})
    assert facts(ReportContent(infinite, Diagnosis()))[0].value == "-inf"


def test_everything_that_is_not_covered_is_said() -> None:
    found = gaps(ReportContent(samples.residual(4), samples.vanishing_diagnosis()))
    assert [(gap.title, gap.names, gap.reason) for gap in found] == [
        ("1 parameter frozen", ("embed.weight",), "requires_grad is off, so no gradient is computed."),
        ("1 parameter unused", ("spare.weight",), "No op of the forward pass read them."),
        ("note, measured", (), "blocks.3.act: gradients by time step not replayed: no such thing"),
        ("rule EF202 did not judge", (), "needs several steps, found one"),
    ]


def test_places_that_only_one_table_has_are_named() -> None:
    content = ReportContent(samples.mlp(3), Diagnosis(), predicted=samples.mlp(2, predicted=True))
    assert [(gap.title, gap.names) for gap in gaps(content)] == [("2 places not predicted", ("3", "4"))]
    content = ReportContent(samples.mlp(2), Diagnosis(), predicted=samples.mlp(3, predicted=True))
    assert [(gap.title, gap.names) for gap in gaps(content)] == [
        ("2 places predicted but not measured", ("3", "4"))
    ]
    assert gaps(ReportContent(samples.mlp(2), Diagnosis(), predicted=samples.mlp(2, predicted=True))) == ()


def test_findings_are_pinned_to_the_places_of_a_picture() -> None:
    places = {"0": "0", "blocks.1:add": "blocks.1", "blocks.1.fc": "blocks.1.fc", "head": "head"}
    sites = ["head.weight", "blocks.1", "blocks.1.fc#2:addmm[1]", "elsewhere", "0", "0"]
    findings = [finding(Severity.WARNING, site, code=f"EF{i}") for i, site in enumerate(sites)]
    assert {place: found.code for place, found in flagged(findings, places).items()} == {
        "head": "EF0",
        "blocks.1:add": "EF1",
        "blocks.1.fc": "EF2",
        "0": "EF4",
    }


def test_a_cause_says_whether_it_was_tested() -> None:
    cause = [Cause(CauseName.UNKNOWN, 0.5, "", confirmed) for confirmed in (None, True, False)]
    assert [verdict_word(c) for c in cause] == [
        "suspected",
        "confirmed by intervention",
        "refuted by intervention",
    ]


def test_the_name_falls_back_to_the_model() -> None:
    flow = samples.mlp(2)
    assert ReportContent(flow, Diagnosis(), title="train.py:build").name == "train.py:build"
    assert ReportContent(flow, Diagnosis()).name == "DeepMLP"
    assert ReportContent(Flow([], "measured"), Diagnosis()).name == "model"
