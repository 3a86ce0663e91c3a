"""Findings and Flows for the terminal, as one HTML page, and as JSON, SARIF and GitHub's annotations.

A renderer gets a :class:`ReportContent` and shows all of it; what is healthy
was decided before. The renderers are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenflow.report.content import ReportContent
    from evenflow.report.github import render_github
    from evenflow.report.html import render_html
    from evenflow.report.json import render_json
    from evenflow.report.sarif import render_sarif
    from evenflow.report.terminal import render_terminal

_HOME = {
    "ReportContent": "evenflow.report.content",
    "render_github": "evenflow.report.github",
    "render_html": "evenflow.report.html",
    "render_json": "evenflow.report.json",
    "render_sarif": "evenflow.report.sarif",
    "render_terminal": "evenflow.report.terminal",
}

__all__ = [
    "ReportContent",
    "render_github",
    "render_html",
    "render_json",
    "render_sarif",
    "render_terminal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'evenflow.report' has no attribute {name!r}; it has {', '.join(__all__)}."
        )
    return getattr(importlib.import_module(_HOME[name]), name)
