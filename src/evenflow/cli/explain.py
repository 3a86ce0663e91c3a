"""``evenflow explain WORD``: what a rule, symptom or cause means, and what helps."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from evenflow.diagnose import words

    return [CompletionItem(word) for word in words() if word.lower().startswith(incomplete.lower())]


@click.command(
    "explain",
    cls=TaughtCommand,
    short_help="What a code, symptom or cause means, and what helps.",
    examples=[
        ("evenflow explain EF101", "The rule behind a finding."),
        ("evenflow explain saturating_activation", "A cause; symptoms work too."),
        ("evenflow explain", "All words that can be explained."),
    ],
)
@click.argument("word", required=False, shell_complete=_complete)
def command(word: str | None) -> None:
    """Explain a rule code, a symptom or a cause: what it is, why it happens and what helps."""
