"""``evenflow check TARGET``: one batch forward and backward, judged and shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.judging import STDOUT, Judging, explanations, judging
from evenflow.cli.output import bars

if TYPE_CHECKING:
    from evenflow.diagnose import Policy
    from evenflow.report import ReportContent


@click.command(
    "check",
    cls=TaughtCommand,
    short_help="Run one batch and judge how its gradients flow.",
    examples=[
        ("evenflow check train.py:build", "build() returns a model, a batch and a loss."),
        ("evenflow check my.nets:Wide --input 32x3x64x64", "A model class, with random images."),
        ("evenflow check config.json --html flow.html", "A transformers config, with a page of pictures."),
        ("evenflow check train.py:build --no-confirm", "Name causes without testing them."),
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
@judging
@click.option("--seed", default=0, show_default=True, help="For the weights, and for data made up here.")
@click.option(
    "--confirm",
    type=click.FloatRange(min=0.0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long suspected causes of an alarm may be tested, each by removing it in a copy.",
)
@click.option("--no-confirm", is_flag=True, help="Test no causes; name suspects only.")
@click.option("--device", default="cpu", show_default=True, help="Where to run, e.g. cuda:1 or mps.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    target: str | None,
    inputs: tuple[str, ...],
    judging: Judging,
    seed: int,
    confirm: float,
    no_confirm: bool,
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
        took = judging.json if judging.json != STDOUT else None
        taken = f" --json took '{took}' as its FILE: put --json last." if took else ""
        ctx.fail(f"Missing TARGET, such as train.py:build.{taken}")
    judging.refuse_to_overwrite(ctx)
    with plain_errors(debug=debug):
        policy = judging.policy()
        with _stdout_kept(not judging.text_on_stdout):
            seconds = 0.0 if no_confirm else confirm
            content = _checked(target, inputs, policy, seed=seed, confirm=seconds, device=device)
        judging.finish(ctx, content)


def _checked(
    target: str, inputs: tuple[str, ...], policy: Policy, *, seed: int, confirm: float, device: str
) -> ReportContent:
    with bars() as bar:  # only where there is a terminal
        task = bar.add_task(f"{target}: running", total=None)

        def track(title: str, done: int, total: int) -> None:
            bar.update(task, description=f"without {title}" if title else target, completed=done, total=total)

        from evenflow.check import check
        from evenflow.cli.target import load_target
        from evenflow.flow import Flow
        from evenflow.report import ReportContent

        loaded = load_target(target, inputs, seed=seed, device=device)
        report = check(
            loaded.model,
            loaded.inputs,
            loaded.loss,
            select=policy.select,
            ignore=policy.ignore,
            seed=seed,
            confirm=confirm,
            track=track,
        )
    flow = report.flow
    diagnosis = policy.settle(report.diagnosis)
    return ReportContent(
        flow=Flow(flow.rows, flow.source, flow.metadata, (*loaded.notes, *flow.notes)),
        diagnosis=diagnosis,
        title=target,
        predicted=report.predicted,
        explanations=explanations(diagnosis),
    )


@contextlib.contextmanager
def _stdout_kept(wanted: bool) -> Iterator[None]:
    """Send what the user's code prints to standard error, if standard output is to hold JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield
