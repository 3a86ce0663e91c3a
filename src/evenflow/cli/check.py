"""``evenflow check TARGET``: one batch forward and backward, judged and shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evenflow.cli.errors import Failure, plain_errors
from evenflow.cli.help import TaughtCommand

if TYPE_CHECKING:
    from evenflow.report import ReportContent

STDOUT = "-"


@click.command(
    "check",
    cls=TaughtCommand,
    short_help="Run one batch and judge how its gradients flow.",
    examples=[
        ("evenflow check train.py:build", "build() returns a model, a batch and a loss."),
        ("evenflow check my.nets:Wide --input 32x3x64x64", "A model class, with random images."),
        ("evenflow check config.json --html flow.html", "A transformers config, with a page of pictures."),
        ("evenflow check train.py:build --json -", "For scripts: JSON on standard output, exit code 0 or 1."),
    ],
)
@click.argument("target", required=False, type=click.Path())
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE[:DTYPE[:HIGH]]",
    help="Random data for a TARGET without a batch; once per argument of the model. "
    "Floats are standard normal, integers lie in 0 ... HIGH-1.",
)
@click.option(
    "--html", "html_path", type=click.Path(), metavar="FILE", help="Write a page that opens offline."
)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value=STDOUT,
    type=click.Path(),
    metavar="[FILE]",
    help="Write JSON to FILE, or to standard output with - or without FILE (then put it last).",
)
@click.option("--full", is_flag=True, help="Print every layer of a deep model.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option(
    "--select", multiple=True, metavar="RULES", help="Apply only these rules, as EF101,EF2 or names."
)
@click.option("--ignore", multiple=True, metavar="RULES", help="Leave these rules out.")
@click.option("--seed", default=0, show_default=True, help="For the weights, and for data made up here.")
@click.option("--device", default="cpu", show_default=True, help="Where to run, e.g. cuda:1 or mps.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    target: str | None,
    inputs: tuple[str, ...],
    html_path: str | None,
    json_path: str | None,
    full: bool,
    force: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    seed: int,
    device: str,
    debug: bool,
) -> None:
    """Run one batch forward and backward, and say where gradients vanish, explode or stop, and why.

    TARGET is file.py:name, package.module:name, or a transformers config
    (config.json). The name stands for a model, for (model, batch),
    for (model, batch, loss), or for a function without arguments that returns
    one of these. The batch is what the model is called with; the loss is called
    with the model's output, and if it takes (output, target), the batch
    is a pair (input, target). The model is left as it was.
    """
    if target is None:
        taken = (
            f" --json took '{json_path}' as its FILE: put --json last."
            if json_path not in (None, STDOUT)
            else ""
        )
        ctx.fail(f"Missing TARGET, such as train.py:build.{taken}")
    for path in (html_path, json_path):
        if path is not None and path != STDOUT and Path(path).exists() and not force:
            ctx.fail(f"{path} exists. Name another file, or overwrite it with --force.")
    with plain_errors(debug=debug):
        with _stdout_kept(json_path == STDOUT):
            content = _checked(
                target, inputs, select=_split(select), ignore=_split(ignore), seed=seed, device=device
            )
        _show(content, html_path, json_path, full=full)
    ctx.exit(1 if content.diagnosis.alarms else 0)


def _checked(
    target: str, inputs: tuple[str, ...], *, select: list[str], ignore: list[str], seed: int, device: str
) -> ReportContent:
    from rich.console import Console

    with Console(stderr=True).status(f"{target}: loading"):  # only where there is a terminal
        from evenflow.check import check
        from evenflow.cli.target import load_target
        from evenflow.diagnose import explain
        from evenflow.diagnose.registry import select_rules
        from evenflow.flow import Flow
        from evenflow.report import ReportContent

        select_rules(select, ignore)  # a mistake there should not cost a run of the model
        loaded = load_target(target, inputs, seed=seed, device=device)
        report = check(loaded.model, loaded.inputs, loaded.loss, select=select, ignore=ignore, seed=seed)
    flow = report.flow
    codes = dict.fromkeys(finding.code for finding in report.findings)
    return ReportContent(
        flow=Flow(flow.rows, flow.source, flow.metadata, (*loaded.notes, *flow.notes)),
        diagnosis=report.diagnosis,
        title=target,
        predicted=report.predicted,
        explanations={code: explain(code) for code in codes},
    )


def _show(content: ReportContent, html_path: str | None, json_path: str | None, *, full: bool) -> None:
    from rich.console import Console

    from evenflow.report import render_html, render_json, render_terminal

    if json_path == STDOUT:
        click.echo(render_json(content))
    else:
        render_terminal(content, Console(), full=full)
    for path, render in ((html_path, render_html), (json_path, render_json)):
        if path is not None and path != STDOUT:
            _write(Path(path), render(content))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}.") from error
    click.echo(f"Wrote {path}", err=True)


def _split(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.replace(",", " ").split()]


@contextlib.contextmanager
def _stdout_kept(wanted: bool) -> Iterator[None]:
    """Send what the user's code prints to standard error, if standard output is to hold JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield
