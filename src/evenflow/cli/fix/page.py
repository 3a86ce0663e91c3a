"""What a search found as one HTML page that opens offline, in the look of the report."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps

from evenflow import __version__
from evenflow.cli.fix.pictures import pictures
from evenflow.cli.fix.table import cells, cut_short, ending, lengths, most_seeds, ranked, verdict
from evenflow.cli.lab.charts import spec
from evenflow.fix import Outcome
from evenflow.fix.outcome import Verdict
from evenflow.report.content import headline
from evenflow.report.page import asset, drawing_library, script_sources
from evenflow.report.text import printable

_TONES = {Verdict.CONFIRMED: "ok", Verdict.INCONCLUSIVE: "note", Verdict.REFUTED: "error"}
_SIGNS = {Verdict.CONFIRMED: "✓", Verdict.INCONCLUSIVE: "•", Verdict.REFUTED: "✗"}


def render_page(outcome: Outcome, subject: str, code: str = "") -> str:
    """The page.

    Args:
        outcome: What was found.
        subject: What was mended.
        code: The best patch as code.

    Raises:
        MissingPackageError: The package vl-convert-python, which holds the
            drawing library, is not installed.
    """
    library, script = drawing_library(), asset("page.js")
    shown = list(pictures(outcome, outcome.patches[0])) if outcome.patches else []
    good = bool(outcome.patches) or outcome.report.healthy
    return _template().render(
        version=__version__,
        subject=printable(subject),
        tone="ok" if good else "warning",
        sign="✓" if good else "▲",
        verdict=" ".join(filter(None, (verdict(outcome), cut_short(outcome)))),
        headline=headline(outcome.report.diagnosis),
        seeds=most_seeds(outcome),
        steps=lengths(outcome),
        rows=[
            {
                **cells(one),
                "tone": _TONES[one.verdict],
                "sign": _SIGNS[one.verdict],
                "reason": ". ".join(filter(None, (one.reason, ending(one)))),
            }
            for one in ranked(outcome)
        ],
        pictures=[{"it": one} for one in shown],
        specs=htmlsafe_json_dumps({one.name: spec(one) for one in shown}, allow_nan=False),
        code=code,
        advice=outcome.advice,
        refuted=[{"change": one.patch.describe(), "why": one.why} for one in outcome.refuted],
        style=asset("style.css"),
        library=library,
        script=script,
        script_sources=script_sources(library, script),
    )


@cache
def _template() -> Template:
    environment: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    return Environment(
        loader=PackageLoader("evenflow.cli.fix"), trim_blocks=True, lstrip_blocks=True, **environment
    ).get_template("page.html.jinja")
