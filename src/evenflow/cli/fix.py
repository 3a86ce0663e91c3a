"""``evenflow fix TARGET``: the smallest change that was tried and makes a program train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.output import bars, save

if TYPE_CHECKING:
    from rich.console import Console

    from evenflow.fix import Outcome
    from evenflow.fix.search import Track
    from evenflow.program import Program


@click.command(
    "fix",
    cls=TaughtCommand,
    short_help="Find the smallest change that makes a program train, and prove it.",
    examples=[
        ("evenflow fix train.py:program", "program is an evenflow.Program, or a function that gives one."),
        (
            "evenflow fix train.py:program --write patch.json --code",
            "Keep the best patch, and print it as code.",
        ),
        ("evenflow fix train.py:program --jobs -1", "Trials on all cores."),
    ],
)
@click.argument("target", type=click.Path())
@click.option(
    "--write", metavar="FILE", help="Write the best patch: ef.apply(model, FILE) puts it on a model."
)
@click.option("--code", is_flag=True, help="Print the best patch as PyTorch code.")
@click.option("--all", "everything", is_flag=True, help="Print all that was refuted, with the numbers.")
@click.option(
    "--steps", type=click.IntRange(2), help="Length of a trial.  [default: a tenth of the training]"
)
@click.option(
    "--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds of each paired trial."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Trials at a time; -1 for one per core.")
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask", "ray"]),
    default="loky",
    show_default=True,
    help="Where trials run: processes here, or a cluster.",
)
@click.option("--address", help="Of a running dask or ray cluster; without one it is started here.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    target: str,
    write: str | None,
    code: bool,
    everything: bool,
    steps: int | None,
    seeds: int,
    jobs: int,
    backend: str,
    address: str | None,
    force: bool,
    debug: bool,
) -> None:
    """Check the program TARGET, try remedies for what is found, and rank those that work.

    TARGET is file.py:name or package.module:name, and the name stands for an
    evenflow.Program or a function without arguments that gives one. Each patch
    is compared with the program as it is, from the same seeds and on the same
    batches. Ctrl-C keeps what was found by then.

    Exit codes: 0 nothing is wrong, or a patch was confirmed; 1 nothing helped;
    2 a mistake in the call, the target or the program.
    """
    if write is not None and Path(write).exists() and not force:
        ctx.fail(f"{write} exists. Name another file, or overwrite it with --force.")
    with plain_errors(debug=debug):
        from rich.console import Console

        from evenflow.fix import fix
        from evenflow.parallel import Workers

        program = _program(target)
        workers = Workers(jobs, backend, address)
        with _tracked() as track:
            outcome = fix(program, seeds=range(seeds), steps=steps, workers=workers, track=track)
        console = Console()
        _show(outcome, console, everything=everything)
        if outcome.patches:
            best = outcome.patches[0].patch
            if code:
                click.echo(best.code(program.start(0).model))
            if write is not None:
                save(Path(write), best.to_json())
        if outcome.interrupted:
            ctx.exit(130)
        ctx.exit(0 if outcome.report.healthy or outcome.patches else 1)


def _program(target: str) -> Program:
    from evenflow.cli.module import called, find
    from evenflow.errors import TargetError
    from evenflow.program import Program

    place, found = find(target)
    given = called(place, found) if callable(found) and not isinstance(found, Program) else found
    if not isinstance(given, Program):
        raise TargetError(
            f"{place} gave {type(given).__name__}. Expected an evenflow.Program: build, optimizer, batches "
            "and loss as functions, so that trials can start anew. See help(evenflow.Program)."
        )
    return given


@contextmanager
def _tracked() -> Iterator[Track]:
    """A bar for each stage."""
    with bars() as bar:

        def track(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
            return bar.track(items, total=total, description=title)

        bar.add_task("checking", total=None)
        yield track


def _show(outcome: Outcome, console: Console, *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from evenflow.lab.verdict import number
    from evenflow.report.content import headline

    console.print(Text(headline(outcome.report.diagnosis), style="bold"))
    if outcome.report.healthy:
        console.print("Nothing to fix.")
        return
    styles = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow"}
    if outcome.trials:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("", "change", "without", "with", "gain, 95 %", "edits"):
            table.add_column(name, justify="left" if name in ("", "change") else "right")
        rest = [trial for trial in outcome.trials if trial not in outcome.patches]
        for trial in (*outcome.patches, *rest):
            low, high = trial.interval or (float("nan"), float("nan"))
            table.add_row(
                Text(str(trial.verdict), style=styles[trial.verdict]),
                trial.patch.describe(),
                _mean(trial.baseline),
                _mean(trial.patched),
                f"{number(low)} … {number(high)}",
                str(trial.patch.size),
            )
        console.print(table)
        told = outcome.trials[0]
        console.print(
            f"Means over {len(told.baseline)} seeds after {told.steps} steps; more is better.",
            style="dim",
            highlight=False,
        )
    for line in outcome.advice:
        console.print(f"By hand: {line}.", highlight=False)
    if everything:
        for one in outcome.refuted:
            console.print(Text(f"refuted  {one.patch.describe()}. {one.why}", style="dim"))
    elif outcome.refuted:
        console.print(f"{len(outcome.refuted)} more were given up before that: --all", style="dim")
    if not outcome.patches:
        console.print("No patch was confirmed. Longer trials (--steps) and more --seeds may tell more.")
    if outcome.interrupted:
        console.print("Interrupted: not everything was tried.", style="yellow")


def _mean(scores: tuple[float, ...]) -> str:
    from evenflow.lab.verdict import mean, number

    return number(mean(scores))
