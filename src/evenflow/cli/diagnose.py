"""``evenflow diagnose RUN``: what went wrong in a stored training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.judging import Judging, explanations, judging

if TYPE_CHECKING:
    from evenflow.diagnose import Policy
    from evenflow.report import ReportContent


@click.command(
    "diagnose",
    cls=TaughtCommand,
    short_help="Judge a stored training run.",
    examples=[
        ("evenflow diagnose runs/first", "A folder that evenflow.watch or evenflow run left."),
        (
            "evenflow diagnose s3://bucket/run --html run.html",
            "Any fsspec filesystem; a page of pictures.",
        ),
        ("evenflow diagnose runs/first --write-baseline accepted.json", "Accept what is found now …"),
        ("evenflow diagnose runs/next --baseline accepted.json", "… and hear of what is new only."),
    ],
)
@click.argument("run", metavar="RUN")
@judging
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(ctx: click.Context, *, run: str, judging: Judging, debug: bool) -> None:
    """Judge RUN, a training run on disk, also while it is still being written.

    Needs no PyTorch. What a project accepts stands in its pyproject.toml, as
    [[tool.evenflow.suppress]] with rules, paths and a reason.
    """
    judging.refuse_to_overwrite(ctx)
    with plain_errors(debug=debug):
        judging.finish(ctx, _diagnosed(run, judging.policy()))


def _diagnosed(path: str, policy: Policy) -> ReportContent:
    from rich.console import Console

    with Console(stderr=True).status(f"{path}: reading"):  # only where there is a terminal
        from evenflow.diagnose import diagnose
        from evenflow.flow import Flow
        from evenflow.report import ReportContent
        from evenflow.store import open_run

        run = open_run(path)
        diagnosis = policy.settle(diagnose(run, select=policy.select, ignore=policy.ignore))
        if run.steps:
            flow = run.flow()
        else:
            why = "No step was sampled: only losses and events of the run are known."
            flow = Flow((), "measured", run.metadata, (why,))
    return ReportContent(flow, diagnosis, title=path, explanations=explanations(diagnosis), run=run)
