"""A sweep as a table for the terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenflow.lab.sweep import Cell
from evenflow.lab.verdict import number

_HEALTHY = 1.0
_ILL = 3.0
"""Decades beyond which layers no longer share one learning rate."""


def render_grid(cells: Sequence[Cell], console: Console) -> None:
    """The last setting across, the others down; in each cell measured and, in brackets, expected."""
    if not cells:
        return
    *down, across = cells[0].settings
    columns = list(dict.fromkeys(str(cell.settings[across]) for cell in cells))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in down:
        table.add_column(name)
    for value in columns:
        table.add_column(f"{across} {value}", justify="right", no_wrap=True)
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in cells:
        place = tuple(str(cell.settings[name]) for name in down)
        rows.setdefault(place, {})[str(cell.settings[across])] = cell
    for place, found in rows.items():
        table.add_row(*place, *(_told(found[value]) if value in found else "" for value in columns))
    console.print(table)
    console.print(
        "log10 of ‖gradient at the first place‖/‖gradient at the end‖: mean of real nets, (expected).",
        style="dim",
        highlight=False,
    )


def csv_text(cells: Sequence[Cell]) -> str:
    """One row for each real net, or for each cell if none was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*cells[0].settings, "seed", "measured", "expected"] if cells else [])
    for cell in cells:
        for seed, value in enumerate(cell.measured or ("",)):
            expected = "" if cell.expected is None else cell.expected
            writer.writerow([*cell.settings.values(), seed if cell.measured else "", value, expected])
    return out.getvalue()


def _told(cell: Cell) -> Text:
    expected = "no formula" if cell.expected is None else number(cell.expected)
    shown = cell.mean if cell.measured else cell.expected
    size = abs(shown) if shown is not None else 0.0
    style = "green" if size < _HEALTHY else "yellow" if size < _ILL else "red"
    text = Text(number(cell.mean), style=style) if cell.measured else Text()
    return text.append(f" ({expected})", style="dim" if cell.measured else style)
