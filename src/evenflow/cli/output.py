"""What long commands show while they work, and how results become files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from evenflow.cli.errors import Failure

if TYPE_CHECKING:
    from rich.progress import Progress

PAUSE = 30.0
"""Seconds after which a line tells that work goes on, where there is no terminal: log files stay short."""


def bars() -> Progress:
    """Bars on standard error, where there is a terminal; they go when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def lines(title: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass items on; a line on standard error at the beginning, and while it lasts another now and then."""
    told = monotonic()
    for done, item in enumerate(items):
        if done == 0:
            click.echo(f"{title}: {total} to do", err=True)
        elif monotonic() - told >= PAUSE:
            click.echo(f"{title}: {done} of {total} done", err=True)
            told = monotonic()
        yield item


@contextmanager
def progress(title: str) -> Iterator[Callable[[Sequence[Any]], Iterable[Any]]]:
    """A bar for the items of one sequence."""
    with bars() as bar:
        yield lambda items: bar.track(items, total=len(items), description=title)


def save(path: Path, text: str) -> None:
    """Write a text, folders included, and say so.

    Raises:
        Failure: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}.") from error
    click.echo(f"Wrote {path}", err=True)
