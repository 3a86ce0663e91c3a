"""SARIF and GitHub's annotations: their required shape, and what must not break out of it."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.report import samples

from evenflow.diagnose import Cause, CauseName, Diagnosis, Finding, Severity, Suppressed, Symptom
from evenflow.report import ReportContent, render_github, render_sarif

FINDING = Finding(
    "EF101",
    Symptom.VANISHING_GRADIENT,
    Severity.ERROR,
    "blocks.3",
    "100 % of it: gone,\nall of it.",
    source="nets/deep.py:12",
    causes=(Cause(CauseName.SATURATING_ACTIVATION, 0.8, "φ' is small"),),
    remedies=("Use ReLU.",),
)
NOTE = replace(FINDING, code="EF202", severity=Severity.NOTE, source=None, site="head")


def _content(*findings: Finding, suppressed: tuple[Suppressed, ...] = ()) -> ReportContent:
    return ReportContent(
        samples.mlp(2), Diagnosis(findings, suppressed=suppressed), explanations={"EF101": "# Page"}
    )


def test_sarif_has_what_the_standard_requires() -> None:
    accepted = Suppressed(replace(FINDING, site="blocks.9"), "on purpose")
    log = json.loads(render_sarif(_content(FINDING, NOTE, suppressed=(accepted,))))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "evenflow"
    assert [rule["id"] for rule in driver["rules"]] == ["EF101", "EF202"]
    assert driver["rules"][0]["help"]["markdown"] == "# Page"
    first, second, third = run["results"]
    assert (first["ruleId"], first["level"], second["level"]) == ("EF101", "error", "note")
    assert driver["rules"][first["ruleIndex"]]["id"] == first["ruleId"]
    assert "saturating activation (80%)" in first["message"]["text"].replace("\u202f", "").replace(" %", "%")
    place = first["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "nets/deep.py"
    assert place["physicalLocation"]["region"]["startLine"] == 12
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "blocks.3"
    assert "physicalLocation" not in second["locations"][0]
    assert third["suppressions"] == [{"kind": "external", "justification": "on purpose"}]
    fingerprints = [result["partialFingerprints"]["site/v1"] for result in run["results"]]
    assert len(set(fingerprints)) == 3


def test_no_findings_make_an_empty_run() -> None:
    assert json.loads(render_sarif(_content()))["runs"][0]["results"] == []
    assert render_github(_content()) == ""


def test_github_gets_one_escaped_line_each() -> None:
    first, second = render_github(_content(FINDING, NOTE)).splitlines()
    assert first.startswith(
        "::error file=nets/deep.py,line=12,title=EF101 vanishing gradient at blocks.3::100 %25 of it: gone,"
    )
    assert second.startswith("::notice title=EF202")
    hostile = replace(FINDING, source="a,b:c.py:3", site="x::error::y\n::z")
    (line,) = render_github(_content(hostile)).splitlines()
    assert line.startswith("::error file=a%2Cb%3Ac.py,line=3,title=")
    assert line.count("::") == 2 + line.partition("title=")[2].partition("::")[2].count("::")
