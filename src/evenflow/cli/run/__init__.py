"""``evenflow run SCRIPT``: a training script, watched as it is."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evenflow.cli.help import TaughtCommand

if TYPE_CHECKING:
    from evenflow.scripts.target import Target


@click.command(
    "run",
    cls=TaughtCommand,
    short_help="Watch a training script as it is.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples=[
        ("evenflow run train.py --epochs 3", "As python train.py --epochs 3, and watched."),
        ("evenflow run --path runs/7 -m jobs.train", "As python -m jobs.train; the run is kept at runs/7."),
        ("torchrun --nproc-per-node 2 -m evenflow run train.py", "All processes are watched; rank 0 writes."),
    ],
    epilog="Options of evenflow stand before SCRIPT, those of the script after it. "
    "The exit code is the script's own.",
)
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as in python -m.")
@click.option("--path", metavar="FOLDER", help="Where the run is kept.  [default: evenflow-runs/SCRIPT-TIME]")
@click.option("--force", is_flag=True, help="Replace a run that is there.")
@click.option(
    "--budget",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of the time that watching may take.",
)
@click.option("--everything", is_flag=True, help="Sample every step in full, whatever it takes.")
@click.option("--panel/--no-panel", default=None, help="Live panel.  [default: where stderr is a terminal]")
@click.option("--patch", metavar="FILE", help="Train with this patch, which evenflow fix --write wrote.")
@click.option("--quiet", is_flag=True, help="Say nothing, not even in the end.")
@click.option("--no-flight-recorder", is_flag=True, help="Do not write down what broke first.")
@click.argument("script", required=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(
    ctx: click.Context,
    *,
    as_module: bool,
    path: str | None,
    force: bool,
    budget: float,
    everything: bool,
    panel: bool | None,
    patch: str | None,
    quiet: bool,
    no_flight_recorder: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with its ARGUMENTS as python does, and watch what it trains.

    The script is not changed and computes the same bits. Models and steps are found
    from its optimizers, the loss from backward(). In the end the findings are
    printed to stderr; standard output and the exit code stay the script's own.

    With --patch the models, optimizers and losses of the script are changed as the
    patch says, before its first step; one that does not fit ends the script with an
    error that says why.
    """
    from evenflow.cli.run.reporter import Reporter, say_the_end
    from evenflow.cli.run.session import Session, Settings
    from evenflow.scripts.imports import when_imported
    from evenflow.scripts.target import Target, run_to_the_end

    target = Target(script, arguments, as_module=as_module)
    if not as_module and not Path(script).is_file():
        ctx.fail(f"There is no file '{script}'. For a module write: evenflow run -m {script}")
    if panel and not sys.stderr.isatty():
        ctx.fail("--panel needs a terminal, and standard error is none.")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = path if path is not None else _default_path(target, world)
    if rank == 0 and Path(folder, "run.json").exists() and not force:
        ctx.fail(f"There is a run at {folder} already. Name another --path, or replace it with --force.")
    own = folder if rank == 0 else None  # which shows what one process would have shown
    settings = Settings(
        path=own,
        flights=None if no_flight_recorder else f"{folder}/flight",
        budget=None if everything else budget,
        overwrite=force,
        script=script,
        arguments=arguments,
    )
    quiet = quiet or rank != 0
    wanted = panel if panel is not None else sys.stderr.isatty()
    session = Session(settings)
    reporter = Reporter(session, target.title, panel=wanted and not quiet, quiet=quiet)
    session.on_begin = reporter.began
    when_imported("torch.optim.optimizer", session.install)
    if patch is not None:
        _put_on(ctx, patch)

    def ended(error: BaseException | None) -> None:
        reporter.stop()
        sys.stdout.flush()
        session.close(error)

    def last() -> None:
        if not quiet:
            say_the_end(session, own)

    sys.exit(run_to_the_end(target, ended, last))


def _put_on(ctx: click.Context, file: str) -> None:
    """Patch what the script trains, once it does."""
    from evenflow.scripts.imports import when_imported
    from evenflow.scripts.meeting import Meeting
    from evenflow.scripts.patching import Patching

    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        ctx.fail(f"The patch {file} cannot be read: {error.strerror}.")
    when_imported("torch", Meeting(Patching(text)).install)


def _default_path(target: Target, world: int) -> str:
    """A folder of its own, the same for all processes of one start."""
    moment = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = moment if world == 1 else f"{moment[:8]}-{os.getppid()}"
    return f"evenflow-runs/{target.title}-{name}"
