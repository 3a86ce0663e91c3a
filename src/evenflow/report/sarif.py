"""Findings as SARIF 2.1.0, which code hosts and editors show beside the source lines.

One run with evenflow as the driver. Every rule that spoke is described with its
page; a finding without a known source line carries its module path alone. What
the project accepts is there as suppressed, with the reason.

References:
    OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0",
    sections 3.27 (result), 3.35 (suppression), 3.49 (reportingDescriptor).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evenflow import __version__
from evenflow.diagnose.finding import Cause, Finding, Severity
from evenflow.report.content import ReportContent, verdict_word
from evenflow.report.text import percent, printable, words

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_LEVELS = {Severity.NOTE: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


def render_sarif(content: ReportContent) -> str:
    """The findings as SARIF text."""
    diagnosis = content.diagnosis
    findings: list[tuple[Finding, str | None]] = [(finding, None) for finding in diagnosis.findings]
    findings += [(one.finding, one.reason) for one in diagnosis.suppressed]
    codes = sorted({finding.code for finding, _ in findings})
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "evenflow",
                        "version": __version__,
                        "rules": [_rule(code, findings, content.explanations) for code in codes],
                    }
                },
                "results": [_result(finding, codes, reason) for finding, reason in findings],
            }
        ],
    }
    return json.dumps(log, indent=1)


def _rule(code: str, findings: list[tuple[Finding, str | None]], pages: Mapping[str, str]) -> dict[str, Any]:
    symptom = next(finding.symptom for finding, _ in findings if finding.code == code)
    rule: dict[str, Any] = {"id": code, "shortDescription": {"text": words(symptom).capitalize()}}
    if code in pages:
        rule["help"] = {"text": pages[code], "markdown": pages[code]}
    return rule


def _result(finding: Finding, codes: list[str], reason: str | None) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": printable(finding.site), "kind": "module"}]
    }
    place = source_line(finding)
    if place is not None:
        path, line = place
        location["physicalLocation"] = {
            "artifactLocation": {"uri": path.replace("\\", "/")},
            "region": {"startLine": line},
        }
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": _LEVELS[finding.severity],
        "message": {"text": message(finding)},
        "locations": [location],
        "partialFingerprints": {"site/v1": f"{finding.code}:{finding.symptom}:{finding.site}"},
    }
    if reason is not None:
        result["suppressions"] = [{"kind": "external", "justification": reason}]
    return result


def message(finding: Finding) -> str:
    """What is found, why, and what to do, in plain text."""
    parts = [printable(finding.message)]
    if finding.causes:
        parts.append(f"Causes: {', '.join(map(_named, finding.causes))}.")
        parts += [
            printable(cause.trial.outcome) for cause in finding.causes if cause.trial and cause.confirmed
        ]
    if finding.remedies:
        parts.append(f"What to do: {printable(finding.remedies[0])}")
    return " ".join(parts)


def _named(cause: Cause) -> str:
    tested = "" if cause.trial is None else f", {verdict_word(cause)}"
    return f"{words(cause.name)} ({percent(cause.confidence)}{tested})"


def source_line(finding: Finding) -> tuple[str, int] | None:
    """File and line of a finding, if they are known."""
    path, _, line = (finding.source or "").rpartition(":")
    return (path, int(line)) if path and line.isdigit() and int(line) > 0 else None
