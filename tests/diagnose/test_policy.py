"""A project's settings: what they accept, and every mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.diagnose import Diagnosis, Finding, Policy, Severity, Symptom
from evenflow.diagnose.policy import IN_BASELINE, PolicyError, baseline_text, read_baseline


def _finding(code: str = "EF501", site: str = "backbone.0.weight") -> Finding:
    return Finding(code, Symptom.VANISHING_GRADIENT, Severity.WARNING, site, "It does not learn.")


def _project(folder: Path, text: str) -> Policy:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    inner = folder / "src" / "deep"
    inner.mkdir(parents=True, exist_ok=True)
    return Policy.of_project(inner)


SUPPRESS = """
[tool.evenflow]
ignore = ["dead_units"]

[[tool.evenflow.suppress]]
rules = ["EF501"]
paths = ["backbone.*"]
reason = "Frozen on purpose."
"""


def test_a_suppression_takes_its_rules_at_its_places_only(tmp_path: Path) -> None:
    policy = _project(tmp_path, SUPPRESS)
    accepted, elsewhere, other = _finding(), _finding(site="head.weight"), _finding(code="EF101")
    settled = policy.settle(Diagnosis((accepted, elsewhere, other)))
    assert settled.findings == (elsewhere, other)
    assert [(one.finding, one.reason) for one in settled.suppressed] == [(accepted, "Frozen on purpose.")]
    assert policy.ignore == ("dead_units",)


def test_settings_of_the_command_line_come_on_top(tmp_path: Path) -> None:
    policy = _project(tmp_path, '[tool.evenflow]\nselect = ["EF1"]\nignore = ["EF2"]')
    assert policy.also().select == ("EF1",)
    assert policy.also(["EF7"], ["EF5"]).select == ("EF7",)
    assert policy.also(["EF7"], ["EF5"]).ignore == ("EF2", "EF5")


def test_the_nearest_table_counts_and_other_projects_have_none(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.evenflow]\nignore = ["EF1"]')
    inner = tmp_path / "package"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[tool.other]")
    assert Policy.of_project(inner).ignore == ("EF1",)


def test_a_baseline_accepts_what_was_there_and_nothing_new(tmp_path: Path) -> None:
    old, new = _finding(), _finding(site="head.weight")
    path = tmp_path / "baseline.json"
    path.write_text(baseline_text(Diagnosis((old,))))
    settled = Policy().with_baseline(path).settle(Diagnosis((old, new)))
    assert settled.findings == (new,)
    assert [one.reason for one in settled.suppressed] == [IN_BASELINE]
    # Written again, it holds both: what it accepted before is not lost.
    path.write_text(baseline_text(settled))
    assert {site for *_, site in read_baseline(path)} == {"backbone.0.weight", "head.weight"}


def test_the_project_names_its_baseline_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(baseline_text(Diagnosis((_finding(),))))
    policy = _project(tmp_path, '[tool.evenflow]\nbaseline = "known.json"')
    assert policy.settle(Diagnosis((_finding(),))).findings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.evenflow]\nselct = []",
            "has no setting 'selct'. It has: select, ignore, baseline, suppress.",
        ),
        ('[tool.evenflow]\nselect = "EF1"', "select: expected a list of texts, got 'EF1'."),
        ('[tool.evenflow]\nignore = ["EF9"]', "[tool.evenflow] ignore: no rule is called 'EF9'."),
        ("[tool.evenflow]\nbaseline = 3", "baseline: expected the name of a file, got 3."),
        ('[tool.evenflow]\nbaseline = "no.json"', "no.json cannot be read: No such file or directory."),
        ("[tool.evenflow]\nsuppress = 1", "write suppressions as [[tool.evenflow.suppress]] tables."),
        ('[[tool.evenflow.suppress]]\nrules = ["EF101"]', 'a suppression needs a reason = "..."'),
        ('[[tool.evenflow.suppress]]\nreason = "r"', 'name its rules, as rules = ["EF501"].'),
        ('[[tool.evenflow.suppress]]\nrules = ["EF9"]\nreason = "r"', "rules: no rule is called 'EF9'."),
        ('[[tool.evenflow.suppress]]\nrule = ["EF1"]\nreason = "r"', "has no setting 'rule'."),
        ("[tool\n", "cannot be read: "),
        ("[tool]\nevenflow = 1", "[tool.evenflow] is no table."),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        _project(tmp_path, text)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no baseline of evenflow."),
        ("[1", "is no baseline of evenflow."),
        ('{"schema_version": 99, "findings": []}', "was written by a newer evenflow (schema 99)."),
    ],
)
def test_what_is_no_baseline_is_said_to_be_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(PolicyError) as error:
        read_baseline(path)
    assert message in str(error.value)
