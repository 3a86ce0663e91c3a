"""The report as one HTML page that opens offline.

The page carries everything: styles, the pictures as data, and the Vega library
that draws them (from the package vl-convert-python). A content security policy
forbids it to load anything and to run any script but its own two, which are
named by their hash; what a user's module name smuggles in would not run even if
it were not escaped.

Escaping: jinja2 escapes all text; JSON goes through ``htmlsafe_json_dumps``,
which leaves no ``<``, ``>``, ``&`` or ``'``; explanations are Markdown with HTML
and images switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markdown_it import MarkdownIt
from markupsafe import Markup

from evenflow import __version__
from evenflow.diagnose.finding import Finding, Severity
from evenflow.report.content import ReportContent, facts, gaps, headline, severity, subject, verdict_word
from evenflow.report.gallery import pictures
from evenflow.report.page import asset, drawing_library, script_sources
from evenflow.report.text import percent, place_name, printable, words

_BELOW_CARD = 3
"""Headings of an explanation stand below those of its finding (h3)."""


def render_html(content: ReportContent) -> str:
    """The report as one self-contained HTML page.

    Raises:
        MissingPackageError: The package vl-convert-python, which holds the
            drawing library, is not installed.
    """
    library, page = drawing_library(), asset("page.js")
    shown = pictures(content)
    worst = severity(content.diagnosis)
    template = _environment().get_template("report.html.jinja")
    return template.render(
        content=content,
        version=__version__,
        verdict=str(worst or "ok"),
        headline=headline(content.diagnosis),
        subject=subject(content),
        facts=facts(content),
        findings=list(_cards(content)),
        gaps=gaps(content),
        pictures=shown,
        specs=htmlsafe_json_dumps({picture.name: picture.spec for picture in shown}, allow_nan=False),
        style=asset("style.css"),
        library=library,
        script=page,
        script_sources=script_sources(library, page),
    )


def _cards(content: ReportContent) -> Iterator[dict[str, Any]]:
    """Findings as the template shows them; an explanation stands with the first finding of its code."""
    explained: set[str] = set()
    for finding in content.diagnosis.findings:
        text = content.explanations.get(finding.code)
        yield _card(finding, text if finding.code not in explained else None)
        explained.add(finding.code)


def _card(finding: Finding, explanation: str | None) -> dict[str, Any]:
    return {
        "finding": finding,
        "explanation": None if explanation is None else _markdown(explanation),
        "causes": [(cause, verdict_word(cause)) for cause in finding.causes],
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evenflow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "place": place_name, "words": words, "percent": percent}
    environment.globals["signs"] = {Severity.ERROR: "✗", Severity.WARNING: "▲", Severity.NOTE: "•", "ok": "✓"}
    return environment


def _markdown(text: str) -> Markup:
    """Markdown as HTML that holds no markup of its author but Markdown's."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(printable_lines(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _BELOW_CARD - 1, 6)}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def printable_lines(text: str) -> str:
    """Make characters that act visible, but keep the line breaks that Markdown needs."""
    return "\n".join(printable(line) for line in text.splitlines())
