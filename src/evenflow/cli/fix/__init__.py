"""``evenflow fix TARGET``: the smallest change that was tried and makes a program or a script train."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evenflow.cli.errors import ended_by_sigterm, plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.output import bars, lines, save

if TYPE_CHECKING:
    from evenflow.fix import Outcome
    from evenflow.fix.track import Track
    from evenflow.program import Program


class _FixCommand(TaughtCommand):
    """Options of evenflow may stand behind a program, but not behind a script, which has its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_script = any(one == "-m" or one.endswith(".py") for one in args)
        ctx.allow_interspersed_args = not is_script
        ctx.ignore_unknown_options = False
        return super().parse_args(ctx, args)


@click.command(
    "fix",
    cls=_FixCommand,
    short_help="Find the smallest change that helps, and prove it.",
    examples=[
        ("evenflow fix train.py --epochs 3", "A script as it is; each trial runs its first 100 steps."),
        (
            "evenflow fix --write patch.json --html fix.html train.py",
            "Keep the best patch, and a page of pictures.",
        ),
        ("evenflow run --patch patch.json train.py", "Afterwards: the whole script with the patch on it."),
        ("evenflow fix train.py:program", "program is an evenflow.Program, or a function that gives one."),
        ("evenflow fix train.py:program --code --jobs -1", "Trials on all cores; the best patch as code."),
        ("evenflow fix --minutes 10 train.py", "What ten minutes find."),
    ],
    epilog="Exit codes: 0 nothing is wrong, or a patch was confirmed; 1 nothing helped; "
    "2 a mistake in the call, the target or the program; 130 interrupted by Ctrl-C or SIGTERM.",
)
@click.argument("target", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "as_module", is_flag=True, help="TARGET is a module to be run, as in python -m.")
@click.option(
    "--write", metavar="FILE", help="Write the best patch: ef.apply(model, FILE) puts it on a model."
)
@click.option("--html", metavar="FILE", help="Write a page with pictures from before and after.")
@click.option("--code", is_flag=True, help="Print the best patch as PyTorch code.")
@click.option("--apply", "go_on", is_flag=True, help="Then run the whole script with the best patch.")
@click.option("--all", "everything", is_flag=True, help="Print all that was refuted, with the numbers.")
@click.option(
    "--steps",
    type=click.IntRange(2),
    help="Length of a trial.  [default: a tenth of a program's training; 100 for a script]",
)
@click.option(
    "--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds of each paired trial."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Time for all of it; then it ends with what was found.  [default: no limit]",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What the script prints in front of the number that counts, more is better; "
    "--metric=-NAME for less.  [default: its loss]",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="REMEDIES",
    help="Leave these remedies out, such as skip,normalise to keep the architecture.",
)
@click.option("--insist", is_flag=True, help="Try remedies though findings are notes, or there are none.")
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
    arguments: tuple[str, ...],
    as_module: bool,
    write: str | None,
    html: str | None,
    code: bool,
    go_on: bool,
    everything: bool,
    steps: int | None,
    seeds: int,
    minutes: float | None,
    metric: str | None,
    ignore: tuple[str, ...],
    insist: bool,
    jobs: int,
    backend: str,
    address: str | None,
    force: bool,
    debug: bool,
) -> None:
    """Check TARGET, try remedies for what is found, and rank those that work.

    TARGET is a training script with its ARGUMENTS, unchanged, or file.py:name, the
    name of an evenflow.Program. Each patch is compared with the training as it is,
    from the same seeds and on the same batches. Ctrl-C, SIGTERM and the end of --minutes
    keep what was found by then.

    Of a script each trial RUNS ITS OWN CODE from the first line, in a process of its
    own, and stops it after --steps. What it writes, downloads or logs, it writes again
    at each trial; only what torch.save saves to a path goes to a temporary folder. The
    script can tell by the environment variable EVENFLOW_TRIAL. On Linux a trial is a
    fork that has imported PyTorch already: set OMP_NUM_THREADS and the like in your
    shell, for what the script sets before its import of torch comes too late.

    The patch goes on as the script's model meets its optimizer: layers, weights,
    settings of the optimizer, and PyTorch's loss functions where they are called. Trial
    0 is the script as it seeds itself; in the others its seeds are shifted.
    """
    is_script = as_module or target.endswith(".py")
    for file in filter(None, (write, html)):
        if Path(file).exists() and not force:
            ctx.fail(f"{file} exists. Name another file, or overwrite it with --force.")
    if is_script and not as_module and not Path(target).is_file():
        ctx.fail(
            f"There is no file '{target}'. For a module write: evenflow fix -m {target.removesuffix('.py')}"
        )
    if is_script and insist:
        ctx.fail("--insist is for an evenflow.Program in file.py:name; of a script only alarms are treated.")
    if not is_script and (arguments or go_on or metric):
        what = "arguments" if arguments else "--apply" if go_on else "--metric"
        ctx.fail(
            f"{what} are for scripts, and {target} is none: a script ends with .py, or stands behind -m."
        )
    with plain_errors(debug=debug):
        from rich.console import Console

        from evenflow.cli.fix.table import show
        from evenflow.parallel import Workers

        if html is not None:
            from evenflow.report.page import drawing_library

            drawing_library()
        workers = Workers(jobs, backend, address)
        ignored = [name for one in ignore for name in one.split(",") if name]
        model: Any = None
        with ended_by_sigterm(), _tracked(checks=not is_script) as track:
            if is_script:
                outcome = _of_script(
                    target,
                    arguments,
                    as_module,
                    metric,
                    seeds=seeds,
                    steps=steps,
                    ignore=ignored,
                    minutes=minutes,
                    workers=workers,
                    track=track,
                )
            else:
                from evenflow.fix import fix

                program = _program(target)
                outcome = fix(
                    program,
                    seeds=range(seeds),
                    steps=steps,
                    ignore=ignored,
                    insist=insist,
                    minutes=minutes,
                    workers=workers,
                    track=track,
                )
                model = program.start(0).model if outcome.patches else None
        show(outcome, Console(), everything=everything)
        best = outcome.patches[0] if outcome.patches else None
        as_code = (best.code or best.patch.code(model)) if best is not None and (code or html) else ""
        if html is not None:
            from evenflow.cli.fix.page import render_page

            save(Path(html), render_page(outcome, " ".join([target, *arguments]), as_code))
        if best is not None:
            if code:
                click.echo(as_code)
            if write is not None:
                save(Path(write), best.patch.to_json())
        if outcome.interrupted:
            ctx.exit(130)
        if go_on and best is not None:
            sys.exit(_run_with(best.patch.to_json(), target, arguments, as_module))
        ctx.exit(0 if outcome.report.healthy or outcome.patches else 1)


def _of_script(
    target: str,
    arguments: tuple[str, ...],
    as_module: bool,
    metric: str | None,
    *,
    seeds: int,
    steps: int | None,
    ignore: Iterable[str],
    minutes: float | None,
    workers: Any,
    track: Track,
) -> Outcome:
    from evenflow.fix.script import STEPS, Script, fix_script

    script = Script(target, arguments, as_module, str(Path.cwd()), metric)
    return fix_script(
        script,
        seeds=range(seeds),
        steps=steps or STEPS,
        ignore=ignore,
        minutes=minutes,
        workers=workers,
        track=track,
    )


def _run_with(patch: str, target: str, arguments: tuple[str, ...], as_module: bool) -> int:
    """The whole script with a patch, watched, in a process that has imported nothing yet."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="evenflow-patch-") as folder:
        file = Path(folder, "patch.json")
        file.write_text(patch, encoding="utf-8")
        module = ["-m"] if as_module else []
        line = [sys.executable, "-m", "evenflow", "run", "--patch", str(file), *module, target, *arguments]
        return subprocess.run(line, check=False).returncode


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
def _tracked(*, checks: bool) -> Iterator[Track]:
    """A bar for each stage, or a line where there is no terminal.

    Args:
        checks: Whether the first stage is a check, which does not tell how far it is.
    """
    with bars() as bar:
        if bar.disable:
            if checks:
                click.echo("checking", err=True)
            yield lines
            return

        def track(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
            return bar.track(items, total=total, description=title)

        if checks:
            bar.add_task("checking", total=None)
        yield track
