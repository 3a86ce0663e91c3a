"""``evenflow lab sweep``: a net of the playground over a grid of settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.output import progress, save

if TYPE_CHECKING:
    from evenflow.lab.sweep import Cell


def _settings(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    """``depth=10,20`` to ``{"depth": ["10", "20"]}``."""
    read = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise click.BadParameter(f"expected SETTING=VALUE[,VALUE]..., got {text!r}")
        read[name] = values.split(",")
    return read


@click.command(
    "sweep",
    cls=TaughtCommand,
    short_help="A net of the playground over a grid of settings.",
    examples=[
        (
            "evenflow lab sweep --over depth=10,20,50 --over init=default,glorot,he --set activation=tanh",
            "Depth against init: decades that the gradient gains or loses.",
        ),
        (
            "evenflow lab sweep recurrent --over steps=20,100 --over cell=rnn,lstm,gru --jobs -1",
            "On all cores.",
        ),
        (
            "evenflow lab sweep --over gain=0.5,1,2 --backend dask --address tcp://host:8786 --csv gains.csv",
            "On a cluster, with every number in a file.",
        ),
    ],
)
@click.argument("net", type=click.Choice(["feed-forward", "recurrent"]), default="feed-forward")
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="SETTING=VALUES",
    callback=_settings,
    help="A setting and its values, separated by commas. Give it again for more settings.",
)
@click.option(
    "--set",
    "fixed",
    multiple=True,
    metavar="SETTING=VALUE",
    callback=_settings,
    help="A setting for all cells.",
)
@click.option(
    "--seeds", type=click.IntRange(0), default=3, show_default=True, help="Real nets for each cell."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Cells at a time; -1 for one per core.")
@click.option(
    "--backend",
    type=click.Choice(["loky", "threading", "dask", "ray"]),
    default="loky",
    show_default=True,
    help="Where they run: processes or threads here, or a cluster.",
)
@click.option("--address", help="Of a running dask or ray cluster; without one it is started here.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write one row for each real net.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def sweep(
    ctx: click.Context,
    *,
    net: str,
    over: dict[str, list[str]],
    fixed: dict[str, list[str]],
    seeds: int,
    jobs: int,
    backend: str,
    address: str | None,
    csv_path: str | None,
    force: bool,
    debug: bool,
) -> None:
    """Take NET over every combination of settings: what theory expects, and what real nets show.

    The settings are those of the playground (evenflow lab serve).
    """
    if csv_path is not None and Path(csv_path).exists() and not force:
        ctx.fail(f"{csv_path} exists. Name another file, or overwrite it with --force.")
    if twice := [name for name, values in fixed.items() if len(values) > 1]:
        ctx.fail(f"--set gives one value; for several of {twice[0]} use --over.")
    with plain_errors(debug=debug):
        from rich.console import Console

        from evenflow.cli.lab.grid import csv_text, render_grid
        from evenflow.lab import sweep as sweeps
        from evenflow.parallel import Workers

        one = {name: values[0] for name, values in fixed.items()}
        workers = Workers(jobs, backend, address)
        size = len(sweeps.grid(net, over, one))
        cells: list[Cell] = []
        with progress(f"{size} cells") as track:
            found = sweeps.sweep(net, over, fixed=one, seeds=seeds, workers=workers)
            try:
                cells.extend(cell for _, cell in zip(track(range(size)), found, strict=False))
            except KeyboardInterrupt:
                click.echo(f"Interrupted: {len(cells)} of {size} cells are done.", err=True)
        render_grid(cells, Console())
        if csv_path is not None:
            save(Path(csv_path), csv_text(cells))
        if len(cells) < size:
            ctx.exit(130)
