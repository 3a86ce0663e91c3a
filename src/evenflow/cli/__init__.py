"""The command ``evenflow``: one file per command, each loaded when it is asked for.

Nothing here imports PyTorch, so help, completion and ``explain`` answer at
once. Exit codes: 0 clean, 1 findings, 2 a mistake in the call, the target or
the model.
"""

from __future__ import annotations

import importlib

import click

from evenflow import __version__
from evenflow.cli.errors import nearest
from evenflow.cli.help import TaughtGroup

_COMMANDS = ("check", "predict", "run", "diagnose", "fix", "explain", "lab", "completion")
"""Names of the modules beside this file that hold a ``command``, in the order of the help page."""


class _Commands(TaughtGroup):
    """A group whose commands live in modules of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"evenflow.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            hint = nearest(name, _COMMANDS) or f"Commands are: {', '.join(_COMMANDS)}."
            ctx.fail(f"There is no command '{name}'. {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        ("evenflow check train.py:build", "One batch through the model that build() gives."),
        ("evenflow check train.py:build --html flow.html", "The same, with a page of pictures."),
        ("evenflow predict config.json", "No data, no weights, any size."),
        ("evenflow explain vanishing_gradient", "What it is, why it happens, what helps."),
    ],
    epilog="Exit codes: 0 clean, 1 findings, 2 a mistake in the call, the target or the model.",
)
@click.version_option(__version__, "-V", "--version", message="evenflow %(version)s")
def main() -> None:
    """Find out whether gradients flow through a PyTorch model, and if not, where and why."""
