"""Help pages that teach: each command shows a few examples of its use, with what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class _Taught(click.Command):
    """Writes ``examples``, pairs of a command line and what it does, below the options."""

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = list(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line, what in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                    with formatter.indentation():
                        formatter.write_text(what)
        super().format_epilog(ctx, formatter)


class TaughtCommand(_Taught):
    """A command with examples."""


class TaughtGroup(_Taught, click.Group):
    """A group with examples."""
