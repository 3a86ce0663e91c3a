"""``evenflow lab``: the field's classic experiments, expected and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand, TaughtGroup
from evenflow.cli.lab.serve import serve
from evenflow.cli.lab.sweep import sweep
from evenflow.cli.output import progress
from evenflow.errors import MissingPackageError

if TYPE_CHECKING:
    from rich.console import Console

    from evenflow.cli.lab.files import Files
    from evenflow.lab import Result
    from evenflow.lab.registry import Kind


@click.group(
    "lab",
    cls=TaughtGroup,
    short_help="The field's classic experiments, expected and measured.",
    examples=[
        ("evenflow lab list", "What there is."),
        ("evenflow lab run sigmoid-depth", "One experiment at full size."),
        (
            "evenflow lab run --all --quick --html lab.html",
            "All of them in minutes, with a page of pictures.",
        ),
        ("evenflow lab serve", "A page with sliders; the gradient follows them."),
        ("evenflow lab sweep --over depth=10,20,50 --over init=default,he", "A grid of nets."),
    ],
)
def command() -> None:
    """Run the textbook of gradient flow on real networks, and compare it with theory."""


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from evenflow.lab import experiments

    return [
        CompletionItem(kind.name(), help=kind.title)
        for kind in experiments()
        if kind.name().startswith(incomplete)
    ]


@command.command(
    "list",
    cls=TaughtCommand,
    short_help="Names and questions of all experiments.",
    examples=[("evenflow lab list", "In the order of a textbook.")],
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def list_command(*, debug: bool) -> None:
    """List all experiments with the question that each one asks."""
    with plain_errors(debug=debug):
        from rich.console import Console

        from evenflow.cli.lab.terminal import render_list
        from evenflow.lab import experiments

        render_list(experiments(), Console())


@command.command(
    "run",
    cls=TaughtCommand,
    short_help="Run experiments and judge each one.",
    examples=[
        ("evenflow lab run sigmoid-depth init-depth --quick", "Two experiments at the small size."),
        ("evenflow lab run --all --quick", "All of them; a few minutes on two cores."),
        (
            "evenflow lab run --all --out results",
            "At full size; a page, all numbers, and a stored run for each.",
        ),
    ],
)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete)
@click.option("--all", "everything", is_flag=True, help="Run every experiment.")
@click.option("--quick", is_flag=True, help="Fewer seeds and smaller nets.")
@click.option("--out", metavar="DIR", help="Write a page, all numbers, and a run for each experiment.")
@click.option("--html", metavar="FILE", help="Write a page of pictures that opens offline.")
@click.option("--json", "numbers", metavar="FILE", help="Write all numbers as JSON.")
@click.option("--times", metavar="FILE", help="Add how long each experiment took to a JSON file.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def run_command(
    ctx: click.Context,
    *,
    names: tuple[str, ...],
    everything: bool,
    quick: bool,
    out: str | None,
    html: str | None,
    numbers: str | None,
    times: str | None,
    force: bool,
    debug: bool,
) -> None:
    """Run experiments by NAME and say of each number whether it agrees with what was expected.

    A measurement agrees when the 95 % interval of its mean over seeds lies
    within the expected range, disagrees when it lies outside, and cannot tell
    when it does both. Exit code 1 if something disagrees, 2 if something could
    not be run.
    """
    if everything == bool(names):
        ctx.fail("Give names of experiments, or --all. Names: evenflow lab list")
    with plain_errors(debug=debug):
        from rich.console import Console

        from evenflow.cli.lab.files import Files
        from evenflow.cli.lab.page import require_library
        from evenflow.cli.lab.terminal import render_summary
        from evenflow.lab import Verdict, experiment, experiments

        kinds = experiments() if everything else [experiment(name) for name in dict.fromkeys(names)]
        files = Files.of(out, html, numbers, times, force=force)
        for path in files.in_the_way([kind.name() for kind in kinds]):
            ctx.fail(f"{path} exists. Name another file, or overwrite it with --force.")
        if files.page is not None:
            require_library()  # now, rather than after an hour of experiments
        console = Console()
        results = _run(kinds, files, quick=quick, console=console)
        render_summary(results, console)
        files.finish(results)
    if len(results) < len(kinds):
        ctx.exit(2)
    ctx.exit(1 if any(result.outcome.verdict is Verdict.DISAGREES for result in results) else 0)


def _run(kinds: Sequence[Kind], files: Files, *, quick: bool, console: Console) -> list[Result]:
    """Run one after the other; what lacks a package is named and left out."""
    from evenflow.cli.lab.terminal import render_result
    from evenflow.lab import run

    results = []
    for number, kind in enumerate(kinds, start=1):
        try:
            with progress(f"{number}/{len(kinds)} {kind.name()}") as track:
                result = run(kind.of_size(quick=quick), track)
        except MissingPackageError as error:
            click.echo(f"{kind.name()} was not run. {error}", err=True)
            continue
        render_result(result, console)
        files.keep(result, quick=quick)
        results.append(result)
    return results


command.add_command(serve)
command.add_command(sweep)
