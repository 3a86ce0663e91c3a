"""What ``evenflow lab run`` leaves on disk: a page, numbers, stored runs, and how long it took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click

from evenflow.cli.errors import Failure
from evenflow.cli.output import save
from evenflow.lab import Result, document, store

PAGE, NUMBERS = "lab.html", "lab.json"
"""Names within the folder of ``--out``, beside one folder for each experiment."""


@final
@dataclass(frozen=True, slots=True)
class Files:
    """Where results go; None for what was not asked for.

    Attributes:
        page: The page of pictures.
        numbers: The JSON.
        runs: The folder in which each experiment gets its run.
        times: The JSON of times, to which this one's are added.
        force: Whether existing files may be overwritten.
    """

    page: Path | None
    numbers: Path | None
    runs: Path | None
    times: Path | None
    force: bool

    @classmethod
    def of(
        cls, out: str | None, html: str | None, numbers: str | None, times: str | None, *, force: bool
    ) -> Files:
        """From the command's options; ``out`` asks for a page, numbers and runs in one folder."""
        folder = None if out is None else Path(out)
        return cls(
            _path(html) or (folder and folder / PAGE),
            _path(numbers) or (folder and folder / NUMBERS),
            folder,
            _path(times),
            force,
        )

    def in_the_way(self, names: Sequence[str]) -> Iterator[Path]:
        """What would have to be overwritten."""
        if not self.force:
            runs = [self.runs / name for name in names] if self.runs else []
            yield from (
                path for path in (self.page, self.numbers, *runs) if path is not None and path.exists()
            )

    def keep(self, result: Result, *, quick: bool) -> None:
        """What is written after each experiment."""
        name = type(result.experiment).name()
        if self.runs is not None:
            store(result, self.runs / name, overwrite=self.force)
        if self.times is not None:
            _add_time(self.times, name, "quick" if quick else "full", result)

    def finish(self, results: list[Result]) -> None:
        """What is written at the end."""
        if self.page is not None:
            from evenflow.cli.lab.page import render_page

            save(self.page, render_page(results))
        if self.numbers is not None:
            save(self.numbers, json.dumps(document(results), ensure_ascii=False, allow_nan=False, indent=1))
        if self.runs is not None:
            click.echo(f"Stored {len(results)} runs in {self.runs}; evenflow.open_run opens each.", err=True)


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _add_time(path: Path, name: str, size: str, result: Result) -> None:
    """Add seconds and verdict to the file; what it says of other experiments and sizes stays."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known.setdefault(name, {})[size] = {
            "seconds": round(result.seconds, 1),
            "processor_seconds": round(result.processor_seconds, 1),
            "verdict": str(result.outcome.verdict),
        }
    except (ValueError, AttributeError) as error:
        raise Failure(f"{path} is no file of times: {error}. Name another one.") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
