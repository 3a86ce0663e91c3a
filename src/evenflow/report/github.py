"""Findings as workflow commands of GitHub Actions, which shows them on the changed lines of a pull request.

    ::error file=net.py,line=12,title=EF101 vanishing gradient at blocks.3::The gradient …

References:
    GitHub Docs, "Workflow commands for GitHub Actions", section "Setting an error message".
"""

from __future__ import annotations

from evenflow.diagnose.finding import Finding, Severity
from evenflow.report.content import ReportContent
from evenflow.report.sarif import message, source_line
from evenflow.report.text import place_name, words

_COMMANDS = {Severity.NOTE: "notice", Severity.WARNING: "warning", Severity.ERROR: "error"}


def render_github(content: ReportContent) -> str:
    """One line for each finding."""
    return "".join(f"{_line(finding)}\n" for finding in content.diagnosis.findings)


def _line(finding: Finding) -> str:
    title = f"{finding.code} {words(finding.symptom)} at {place_name(finding.site)}"
    properties = {"title": title}
    place = source_line(finding)
    if place is not None:
        properties = {"file": place[0], "line": str(place[1]), **properties}
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{_COMMANDS[finding.severity]} {told}::{_data(message(finding))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
