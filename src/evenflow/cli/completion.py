"""``evenflow completion``: the script that teaches a shell to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from evenflow.cli.help import TaughtCommand


@click.command(
    "completion",
    cls=TaughtCommand,
    examples=[
        ("evenflow completion bash >> ~/.bashrc", "From the next shell on."),
        ("evenflow completion zsh >> ~/.zshrc", "Likewise."),
        ("evenflow completion fish > ~/.config/fish/completions/evenflow.fish", "At once."),
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows every shell of the choice"
    click.echo(kind(ctx.find_root().command, {}, "evenflow", "_EVENFLOW_COMPLETE").source())
