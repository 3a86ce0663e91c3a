"""``evenflow explain WORD``: what a rule, symptom or cause means, and what helps.

The pages are Markdown. A terminal gets them set; a file or a pipe gets the text
itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.output import save

_CODE = re.compile(r"ef\d+", re.IGNORECASE)
_MAX_WIDTH = 100
"""Columns that are used at most: longer lines are hard to follow."""


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Codes and names of rules with their summaries, then symptoms and causes."""
    from evenflow.diagnose import CauseName, Symptom, rules

    words = {name: rule.summary for rule in rules() for name in (rule.code, rule.name)}
    for name in (*Symptom, *CauseName):
        words.setdefault(str(name), "")
    start = incomplete.lower()
    return [CompletionItem(word, help=text) for word, text in words.items() if word.lower().startswith(start)]


@click.command(
    "explain",
    cls=TaughtCommand,
    short_help="What a code, symptom or cause means, and what helps.",
    examples=[
        ("evenflow explain EF101", "The rule behind a finding; several codes give several pages."),
        ("evenflow explain saturating_activation", "A cause; symptoms work too."),
        ("evenflow explain dead relu", "Everyday words."),
        ("evenflow explain EF101 --html page.html", "A page with the lab's picture, which opens offline."),
        ("evenflow explain", "The list of all pages."),
    ],
)
@click.argument("words", nargs=-1, metavar="[CODE|WORD]...", shell_complete=_complete)
@click.option("--html", type=click.Path(), metavar="FILE", help="Write a page with the lab's picture.")
@click.option("--force", is_flag=True, help="Overwrite an existing FILE.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(
    ctx: click.Context, words: tuple[str, ...], *, html: str | None, force: bool, debug: bool
) -> None:
    """Explain a rule code, a symptom or a cause: what it is, why it happens and what helps."""
    from evenflow.diagnose import explain

    if html is not None and Path(html).exists() and not force:
        ctx.fail(f"{html} exists. Name another file, or overwrite it with --force.")
    with plain_errors(debug=debug):
        asked = words if all(map(_CODE.fullmatch, words)) else (" ".join(words),)
        pages = [explain(word) for word in asked or ("",)]
        if html is not None:
            from evenflow.report.explained import render_explained

            save(Path(html), render_explained(pages))
            return
    _print("\n".join(pages))


def _print(markdown: str) -> None:
    if not sys.stdout.isatty():
        click.echo(markdown, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(markdown), width=min(console.width, _MAX_WIDTH))
