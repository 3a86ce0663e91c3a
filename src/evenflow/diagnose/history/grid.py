"""Grid: the rows of one role over all sampled steps, a column an array [steps, sites]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from evenflow.flow import Role
from evenflow.flow.columns import to_numpy

if TYPE_CHECKING:
    import pyarrow as pa

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Integers: TypeAlias = npt.NDArray[np.int64]

COLUMNS = (
    "step", "order", "path", "call", "op", "index", "time", "role", "status", "module_type", "dtype",
    "count", "mean", "mean_square", "abs_max", "zero_count", "nonfinite_count",
    "dead_fraction", "saturated_fraction",
)  # fmt: skip
"""What is read of the table of Flows; lists (shapes, inputs, histograms) are left where they are."""


@dataclass(frozen=True, eq=False)
class Grid:
    """One role of a run.

    Attributes:
        steps: The sampled steps [steps], ascending.
        labels: Name of each site [sites], in forward order: a parameter's name, a
            module's path, or an op's label.
        module_types: Class name of the module at each site.
        dtypes: Format of each site's tensor, e.g. ``"float16"``.
        statuses: Whether a gradient reached the site at its last step.
        count: Entries of each tensor [steps, sites]; NaN where there is no row, as
            in all other columns.
        mean: Their mean.
        mean_square: Their mean square.
        abs_max: The largest absolute value.
        zero_count: Entries that are exactly zero.
        nonfinite_count: Entries that are NaN or infinite.
        dead_fraction: See :class:`~evenflow.flow.Row`.
        saturated_fraction: Likewise.
    """

    steps: Integers
    labels: tuple[str, ...]
    module_types: tuple[str, ...]
    dtypes: tuple[str, ...]
    statuses: tuple[str, ...]
    count: Floats
    mean: Floats
    mean_square: Floats
    abs_max: Floats
    zero_count: Floats
    nonfinite_count: Floats
    dead_fraction: Floats
    saturated_fraction: Floats

    @cached_property
    def rms(self) -> Floats:
        """Root mean square [steps, sites]; NaN where it is not known, 0 for a tensor of zeros."""
        return np.sqrt(self.mean_square)

    @cached_property
    def norm(self) -> Floats:
        """Euclidean norm [steps, sites] of the finite entries."""
        return np.sqrt(self.mean_square * (self.count - self.nonfinite_count))

    def column_of(self, label: str) -> int | None:
        """Where a site stands; None if it is not here."""
        return self._columns.get(label)

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {label: column for column, label in enumerate(self.labels)}


def grids(table: pa.Table) -> dict[Role, Grid]:
    """The grids of a table of Flows with the columns :data:`COLUMNS`, single time steps left out."""
    if table["time"].null_count < table.num_rows:
        import pyarrow.compute as pc

        table = table.filter(pc.is_null(table["time"]))
    if table.num_rows == 0:
        return {}
    table = table.combine_chunks()
    steps, row_step = _numbered(to_numpy(table["step"]))
    texts = {name: _encode(table[name]) for name in ("path", "op", "role", "status", "module_type", "dtype")}
    numbers = {name: to_numpy(table[name]) for name in ("call", "index", "order")}
    roles, row_role = texts["role"]
    key = texts["path"][1].astype(np.int64)
    for codes in (texts["op"][1], numbers["call"], numbers["index"]):
        key = key * (int(codes.max()) + 1) + codes
    columns = {name: to_numpy(table[name]) for name in COLUMNS[11:]}
    found: dict[Role, Grid] = {}
    for code, role in enumerate(roles):
        rows = np.flatnonzero(row_role == code)
        if rows.size:
            found[Role(role)] = _grid(rows, steps, row_step[rows], key[rows], texts, numbers, columns)
    return found


def _grid(
    rows: Integers,
    steps: Integers,
    row_step: Integers,
    key: Integers,
    texts: dict[str, tuple[list[str], Integers]],
    numbers: dict[str, Integers],
    columns: dict[str, Floats],
) -> Grid:
    """One role's grid, of its ``rows`` in the table."""
    last = np.zeros(int(key.max()) + 1, np.int64)
    last[key] = np.arange(1, rows.size + 1)  # of each site its last row, counted from 1
    sites = np.flatnonzero(last)
    shown = rows[last[sites] - 1]
    ranked = np.lexsort((sites, numbers["order"][shown]))
    sites, shown = sites[ranked], shown[ranked]
    place = np.zeros(last.size, np.int64)
    place[sites] = np.arange(sites.size)
    cell = row_step * sites.size + place[key]

    def pivot(name: str) -> Floats:
        matrix = np.full(steps.size * sites.size, np.nan)
        matrix[cell] = columns[name][rows]
        return matrix.reshape(steps.size, sites.size)

    def text(name: str) -> tuple[str, ...]:
        words, codes = texts[name]
        return tuple(words[code] for code in codes[shown])

    calls, indices = numbers["call"][shown], numbers["index"][shown]
    return Grid(
        steps,
        tuple(map(_label, text("path"), calls.tolist(), text("op"), indices.tolist())),
        text("module_type"),
        text("dtype"),
        text("status"),
        *(pivot(name) for name in COLUMNS[11:]),
    )


def _numbered(steps: Integers) -> tuple[Integers, Integers]:
    """The different steps, ascending, and for each row which of them; rows mostly come in order."""
    new = np.diff(steps, prepend=steps[0] - 1)
    if (new >= 0).all():
        return steps[new > 0], np.cumsum(new > 0) - 1
    different, which = np.unique(steps, return_inverse=True)
    return different, which


def _label(path: str, call: int, op: str, index: int) -> str:
    number = f"#{call}" if call else ""
    kind = "" if op in ("parameter", "output") else f":{op}[{index}]" if index else f":{op}"
    return f"{path}{number}{kind}"


def _encode(column: pa.ChunkedArray) -> tuple[list[str], Integers]:
    """A column of words as its different words and, for each row, which of them."""
    joined = column.unify_dictionaries().combine_chunks()
    if not hasattr(joined, "indices"):
        joined = joined.dictionary_encode()
    return joined.dictionary.to_pylist(), to_numpy(joined.indices)
