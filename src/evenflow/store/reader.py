"""Reading a run, finished, killed or still being written.

Parts are listed anew for every table, checked against their names and decoded
one by one. What is damaged, foreign or missing is left out and told in one
warning for each table; nothing is ever guessed in its place. Only Parquet and
JSON are read, and both hold data alone: nothing in a run is executed.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, final

import pyarrow as pa

from evenflow.flow.columns import no_rows, to_numpy, where
from evenflow.flow.run import Run
from evenflow.store import manifest as manifests
from evenflow.store.errors import StoreError, tell
from evenflow.store.manifest import Manifest, ManifestError
from evenflow.store.parts import Part, PartError, Sealed, covering, gaps, unseal
from evenflow.store.schema import TABLES
from evenflow.store.storage import Storage, storage_at

_LISTINGS = 5
"""How often the folder is listed again because a part was joined into another while it was to be read."""
_KEPT_PARTS = 4
"""Proven parts that are kept, as they are on disk, for Flows are read step by step."""


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a stored run.

    Args:
        path: Its folder, or a URL that fsspec understands. The run may still be
            being written: what has been flushed is seen.

    Raises:
        StoreError: There is no run, or it was written by a newer version.
    """
    return Run(StoredTables(storage_at(path)))


@final
class StoredTables:
    """The tables of a stored run; see :class:`evenflow.flow.run.Tables`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._manifest = self._read_manifest()
        self._told: set[str] = set()
        self._recent: OrderedDict[Part, Sealed] = OrderedDict()
        self._spans: dict[Part, tuple[float, float]] = {}

    @property
    def location(self) -> str:
        """The run's place."""
        return self._storage.location

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What run.json says; only ``state`` if that file was damaged."""
        if self._manifest is None:
            return {"state": "unknown"}
        return {**self._manifest.metadata, "state": self._manifest.state, "created": self._manifest.created}

    def read(self, table: str, columns: list[str] | None = None, step: int | None = None) -> pa.Table:
        """The rows of a table, all or of one step.

        Raises:
            StoreError: There is no such table, or the folder is gone.
        """
        if table not in TABLES:
            raise StoreError(f"A run has no table {table!r}. Tables are: {', '.join(TABLES)}.")
        schema = TABLES[table]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        for _ in range(_LISTINGS):
            pieces, faults = self._pieces(table, columns, step)
            if None not in faults.values():
                break
        self._tell_faults(table, list(pieces), {part: why for part, why in faults.items() if why})
        if not pieces:
            return no_rows(schema)
        rows = pa.concat_tables(pieces.values())
        return rows if step is None else where(rows, to_numpy(rows["step"]) == step).select(schema.names)

    def _pieces(
        self, table: str, columns: list[str] | None, step: int | None
    ) -> tuple[dict[Part, pa.Table], dict[Part, str | None]]:
        """The parts that together hold a table, decoded, and what is wrong with others.

        A fault is None where the part was no longer there. Where a part cannot be
        used, the smaller ones that it was joined from may still be.
        """
        listed = [part for name in self._names() if (part := Part.parse(name)) and part.table == table]
        decoded: dict[Part, pa.Table] = {}
        faults: dict[Part, str | None] = {}
        while True:
            chosen = covering([part for part in listed if part not in faults])
            fresh = [part for part in chosen if part not in decoded]
            for part in fresh:
                try:
                    decoded[part] = self._decode(part, columns, step)
                except FileNotFoundError:
                    faults[part] = None
                except OSError as error:
                    faults[part] = f"it cannot be read ({error})"
                except PartError as error:
                    faults[part] = str(error)
            if not faults.keys() & set(fresh):
                return {part: decoded[part] for part in chosen}, faults

    def _decode(self, part: Part, columns: list[str] | None, step: int | None) -> pa.Table:
        """The rows of one part; of those, at least the rows of ``step``."""
        low, high = self._spans.get(part, (-math.inf, math.inf))
        if step is not None and not low <= step <= high:
            return no_rows(TABLES[part.table])
        sealed = self._recent.get(part) or unseal(self._id, part, self._storage.read(part.name))
        self._recent[part] = sealed
        self._recent.move_to_end(part)
        self._spans[part] = sealed.span
        while len(self._recent) > _KEPT_PARTS:
            self._recent.popitem(last=False)
        return sealed.rows(columns) if step is None else sealed.rows_near(step)

    def _tell_faults(self, table: str, used: list[Part], bad: dict[Part, str]) -> None:
        count = self._manifest.flushes.get(table) if self._manifest is not None else None
        missing = gaps(used, count)
        faults = [f"{part.name}: {why}" for part, why in sorted(bad.items())]
        if not faults and not missing:
            return
        lines = faults[:5] + ([f"and {len(faults) - 5} more"] if len(faults) > 5 else [])
        lost = (
            f"{len(missing)} of the flushes of {table!r} are missing." if missing else "No rows are missing."
        )
        text = "\n  ".join(
            [f"The run at {self.location} is damaged; the rest of it is read. {lost} missing.", *lines]
        )
        if text not in self._told:
            self._told.add(text)
            tell(text)

    @property
    def _id(self) -> str | None:
        return self._manifest.id if self._manifest is not None else None

    def _names(self) -> list[str]:
        try:
            return self._storage.names()
        except OSError as error:
            raise StoreError(f"The run at {self.location} can no longer be read: {error}") from error

    def _read_manifest(self) -> Manifest | None:
        """run.json; None, with a warning, if only that file is damaged."""
        try:
            names = self._storage.names()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"There is no folder {self.location}. "
                f"Give the folder of a run: the one that holds {manifests.NAME}."
            ) from error
        except OSError as error:
            raise StoreError(f"{self.location} cannot be read: {error}") from error
        parts = [name for name in names if Part.parse(name) is not None]
        if manifests.NAME not in names and not parts:
            raise StoreError(
                f"{self.location} holds no run: it has no {manifests.NAME}. "
                "Give the folder that was the path of evenflow.watch."
            )
        try:
            return Manifest.from_json(self._storage.read(manifests.NAME))
        except (ManifestError, OSError) as error:
            why = str(error)
            if not parts or "upgrade" in why:
                raise StoreError(f"{self.location}/{manifests.NAME} cannot be used: {why}.") from error
            tell(
                f"{self.location}/{manifests.NAME} cannot be used: {why}. "
                f"The {len(parts)} parts beside it are read; what that file said of the run is not known."
            )
            return None
