"""The report in a terminal.

From top to bottom: the verdict in one line and the figures behind it, a bar for
each layer, the waterfall from the loss to the input, time steps of recurrent
nets, what is not covered, and last, next to the prompt, the findings. All of it
fits 80 columns; without colour or Unicode the same facts remain, since neither
carries one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evenflow.diagnose.finding import Cause, Finding, Severity
from evenflow.report.bars import ASCII, UNICODE
from evenflow.report.content import ReportContent, facts, gaps, headline, severity, subject, verdict_word
from evenflow.report.terminal_pictures import COLOUR, Paper, layers, time_steps, title, waterfall_bars
from evenflow.report.text import percent, place_name, shorten, words

MAX_WIDTH = 100
"""Columns that are used at most: longer lines are hard to follow."""

_VERDICT_STYLE = {True: "green", False: "red", None: "not bold dim"}

_NAMES = 6
"""Names in a list before it is shortened."""


def render_terminal(
    content: ReportContent, console: Console, *, full: bool = False, see_all: str = "--full"
) -> None:
    """Print the report.

    Args:
        content: What to report.
        console: Where to; its width, colours and encoding are respected.
        full: Whether to print every layer of a deep model.
        see_all: How the reader gets every layer; named where the list was shortened.
    """
    paper = Paper(
        width=min(console.width, MAX_WIDTH),
        glyphs=ASCII if console.options.ascii_only else UNICODE,
        full=full,
        see_all=see_all,
    )
    for part in (_header, layers, waterfall_bars, time_steps, _not_covered, _findings):
        for renderable in part(content, paper):
            console.print(renderable, highlight=False, markup=False, emoji=False, width=paper.width)


def _header(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    worst = severity(content.diagnosis)
    yield ""
    yield Text.assemble(
        ("evenflow  ", "bold cyan"),
        (shorten(paper.text(content.name), paper.width - 10, paper.glyphs.ellipsis), "bold"),
    )
    yield Text(paper.text(subject(content)), "dim")
    yield ""
    yield Text(f"{_sign(worst, paper)} {paper.text(headline(content.diagnosis))}", COLOUR[worst])
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for fact in facts(content):
        value = Text(paper.text(fact.value), "bold")
        value.append(paper.text(f"   {fact.note}" if fact.note else ""), "not bold dim")
        table.add_row(Text("  " + paper.text(fact.label), "dim"), value)
    yield table


def _not_covered(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    found = gaps(content)
    if found:
        yield from title(paper, "Not covered")
    for gap in found:
        text = Text(paper.text(gap.title))
        text.append(paper.text(f": {gap.reason}"), "dim")
        yield Padding(text, (0, 0, 0, 2))
        if gap.names:
            room = paper.width - 8
            names = [shorten(paper.text(item), room, paper.glyphs.ellipsis) for item in gap.names[:_NAMES]]
            more = len(gap.names) - len(names)
            yield Padding(Text(", ".join(names) + (f" and {more} more" if more else ""), "dim"), (0, 0, 0, 4))


def _findings(content: ReportContent, paper: Paper) -> Iterator[RenderableType]:
    findings = content.diagnosis.findings
    if findings:
        yield from title(paper, "Findings")
    for finding in findings:
        yield from _finding(finding, paper)
        yield ""
    if findings:
        codes = " ".join(dict.fromkeys(paper.text(finding.code) for finding in findings))
        yield Text(f"What they mean and why: evenflow explain {codes}", "dim")
    yield ""


def _finding(finding: Finding, paper: Paper) -> Iterator[RenderableType]:
    style = COLOUR[finding.severity]
    head = Text(f"{_sign(finding.severity, paper)} {finding.severity} {paper.text(finding.code)}", style)
    head.append(f"  {words(finding.symptom)} at ")
    head.append(paper.text(place_name(finding.site)), "bold")
    if finding.source:
        head.append(paper.text(f"  ({finding.source})"), "dim")
    yield head
    yield Padding(Text(paper.text(finding.message)), (0, 0, 0, 2))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, width=8)
    table.add_column(overflow="fold")
    for evidence in finding.evidence:
        table.add_row(Text("evidence", "dim"), Text(paper.text(evidence.text)))
    for cause in finding.causes:
        table.add_row(Text("cause", "dim"), _cause(cause, paper))
    for number, remedy in enumerate(finding.remedies, start=1):
        table.add_row(Text(f"remedy {number}", "dim"), Text(paper.text(remedy), "green"))
    if table.row_count:
        yield Padding(table, (0, 0, 0, 2))


def _cause(cause: Cause, paper: Paper) -> Text:
    text = Text(words(cause.name), "bold")
    text.append(paper.text(f" ({percent(cause.confidence)}, "), "not bold dim")
    text.append(paper.text(verdict_word(cause)), _VERDICT_STYLE[cause.confirmed])
    text.append(paper.text(")"), "not bold dim")
    text.append(paper.text(f"  {cause.evidence}"), "not bold")
    if cause.trial is not None:
        text.append(paper.text(f" {cause.trial.outcome}"), "not bold")
    return text


def _sign(level: Severity | None, paper: Paper) -> str:
    """A mark for each severity, so that colour is not needed."""
    glyphs = paper.glyphs
    return {
        Severity.ERROR: glyphs.error,
        Severity.WARNING: glyphs.warning,
        Severity.NOTE: glyphs.bullet,
        None: glyphs.ok,
    }[level]
