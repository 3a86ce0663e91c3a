"""Writing a run while training goes on.

Rows gather in memory and are written every ``flush_seconds`` by a thread of the
writer's own, so that training never waits for a disk. What a killed process
loses is at most the rows of one interval.

Small parts are joined as they come, eight of one size into one of the next, as
in a log-structured merge tree: a row is rewritten at most a few times, and the
number of files grows with the logarithm of the number of flushes until parts
are full. Memory stays bounded: by the rows of one interval, and by those of one
full part while joining.

When writing fails (disk full, filesystem gone) one warning is given, rows wait
for the next attempt, and when too many wait the oldest are dropped. Nothing is
ever raised into training.

References:
    P. O'Neil, E. Cheng, D. Gawlick, E. O'Neil, "The log-structured merge-tree",
    Acta Informatica 33, 1996, §3.
"""

from __future__ import annotations

import atexit
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import thread_time
from typing import Any, final

import pyarrow as pa

from evenflow.store import manifest as manifests
from evenflow.store.errors import StoreError, tell
from evenflow.store.manifest import Manifest
from evenflow.store.parts import Part, PartError, seal, unseal
from evenflow.store.schema import TABLES
from evenflow.store.storage import storage_at

_FAN_IN = 8
"""Parts that are joined into one. Each row is rewritten log8(full part / flush) times, about 4."""
_FULL_ROWS = 1 << 18
"""A part with this many rows is not joined further: some 60 MiB of Arrow while it is in memory."""
_EARLY_ROWS = 1 << 15
"""Rows that are written without waiting for the interval to end."""
_MOST_WAITING = 1 << 19
"""Rows that wait at most while writing fails; then the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class _Written:
    """A part on disk and its size."""

    part: Part
    rows: int
    level: int


@final
class RunWriter:
    """A run that is being written.

    Args:
        path: A folder, a URL that fsspec understands, or None to keep the run in memory.
        metadata: Facts on the run that fit in JSON.
        flush_seconds: How long rows wait at most before they are written.
        overwrite: Whether a run that is already there may be replaced.
        gather: Called in the writing thread before each flush, for rows that are
            still to be made: tables by name.
        spent: Called in the writing thread with the processor time of each flush there, in seconds.

    Raises:
        StoreError: There is a run at ``path`` already, or the place cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        flush_seconds: float = 5.0,
        overwrite: bool = False,
        gather: Callable[[], Iterable[tuple[str, pa.Table]]] = tuple,
        spent: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.storage = storage_at(path)
        self.lost_rows = 0
        self._manifest = Manifest(
            id=secrets.token_hex(8),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            metadata=dict(metadata or {}),
        )
        self._interval = flush_seconds
        self._gather, self._spent = gather, spent
        self._pid = os.getpid()
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._waiting_rows = 0
        self._written: dict[str, list[_Written]] = {name: [] for name in TABLES}
        self._flushes = dict.fromkeys(TABLES, 0)
        self._rows_lock = threading.Lock()  # held for moments
        self._disk_lock = threading.Lock()  # held while writing
        self._wake = threading.Event()
        self._closed = False
        self._warned = False
        pa.array([0])  # Arrow's first array loads pandas, if there is one: now, not in the midst of training
        self._begin(overwrite)
        self._thread = threading.Thread(target=self._write_forever, name="evenflow-store", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def id(self) -> str:
        """The run's random name."""
        return self._manifest.id

    def add(self, table: str, rows: pa.Table) -> None:
        """Take rows, to be written within the interval.

        Args:
            table: Name of the table.
            rows: Rows with the columns of that table (:data:`evenflow.store.schema.TABLES`).

        Raises:
            ValueError: They have other columns.
        """
        if self._closed or os.getpid() != self._pid:  # a forked child has no business here
            return
        self._take(table, rows)
        if self._waiting_rows >= _EARLY_ROWS:
            self.hurry()

    def hurry(self) -> None:
        """Have the thread flush at once, without waiting for it."""
        self._wake.set()

    def flush(self) -> None:
        """Write now what waits."""
        if os.getpid() != self._pid:
            return
        with self._disk_lock:
            for table, rows in self._gather():
                self._take(table, rows)
            for table in TABLES:
                self._write_waiting(table)

    def close(self, state: str = "finished") -> None:
        """Write what waits, join the parts, and say in run.json that the run has ended.

        Args:
            state: ``finished`` or ``failed``.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._wake.set()
        self._thread.join()
        self.flush()
        with self._disk_lock:
            try:
                for table in TABLES:
                    for group in _runs_to_join(self._written[table]):
                        self._join(table, group)
                self._manifest = replace(self._manifest, state=state, flushes=dict(self._flushes))
                self.storage.write(manifests.NAME, self._manifest.to_json())
            except OSError as error:
                self._tell(error)

    def _begin(self, overwrite: bool) -> None:
        try:
            self.storage.create()
            names = self.storage.names()
            if manifests.NAME in names and not overwrite:
                raise StoreError(
                    f"There is a run at {self.storage.location} already. "
                    "Give another path, or overwrite=True to replace it."
                )
            for name in names:
                if name == manifests.NAME or Part.parse(name) is not None:
                    self.storage.delete(name)
            self.storage.write(manifests.NAME, self._manifest.to_json())
        except OSError as error:
            raise StoreError(
                f"A run cannot be written to {self.storage.location}: {error}\n"
                "Give the path of a folder that can be written to."
            ) from error

    def _take(self, table: str, rows: pa.Table) -> None:
        rows = rows.cast(TABLES[table])
        with self._rows_lock:
            self._waiting[table].append(rows)
            self._waiting_rows += rows.num_rows

    def _write_forever(self) -> None:
        while not self._closed:
            self._wake.wait(self._interval)
            self._wake.clear()
            if not self._closed:
                began = thread_time()
                self.flush()
                self._spent(thread_time() - began)

    def _write_waiting(self, table: str) -> None:
        with self._rows_lock:
            waiting, self._waiting[table] = self._waiting[table], []
            self._waiting_rows -= sum(rows.num_rows for rows in waiting)
        if not waiting:
            return
        try:
            rows = pa.concat_tables(waiting)
            number = self._flushes[table]
            part, content = seal(self.id, table, number, number, rows)
            self.storage.write(part.name, content)
        except OSError as error:
            self._tell(error)
            self._keep(table, waiting)
            return
        self._flushes[table] += 1
        self._written[table].append(_Written(part, rows.num_rows, 0))
        with suppress(OSError):  # the small parts are there still
            while (group := _last_of_one_size(self._written[table])) and self._join(table, group):
                pass

    def _keep(self, table: str, waiting: list[pa.Table]) -> None:
        """Put rows back that could not be written; drop the oldest if there are too many."""
        with self._rows_lock:
            self._waiting[table] = [*waiting, *self._waiting[table]]
            self._waiting_rows += sum(rows.num_rows for rows in waiting)
            while self._waiting_rows > _MOST_WAITING and self._waiting[table]:
                dropped = self._waiting[table].pop(0).num_rows
                self._waiting_rows -= dropped
                self.lost_rows += dropped

    def _join(self, table: str, group: list[_Written]) -> bool:
        """Write one part in place of several neighbours; whether that was done."""
        try:
            tables = [unseal(self.id, one.part, self.storage.read(one.part.name)).rows() for one in group]
        except (PartError, FileNotFoundError):  # damaged since: leave it to the reader to say so
            return False
        rows = pa.concat_tables(tables)
        first, last = group[0].part.first, group[-1].part.last
        part, content = seal(self.id, table, first, last, rows)
        self.storage.write(part.name, content)
        for one in group:
            self.storage.delete(one.part.name)
        here = self._written[table].index(group[0])
        level = 1 + max(one.level for one in group)
        self._written[table][here : here + len(group)] = [_Written(part, rows.num_rows, level)]
        return True

    def _tell(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            tell(
                f"The run at {self.storage.location} cannot be written at the moment: {error}. "
                "Training goes on, and what was written before stays readable. evenflow keeps trying; "
                "this is said once."
            )


def _last_of_one_size(parts: list[_Written]) -> list[_Written]:
    """The last few parts, if they are as many as are joined and of one size; else nothing."""
    group = parts[-_FAN_IN:]
    alike = len(group) == _FAN_IN and all(one.level == group[0].level for one in group)
    return group if alike and sum(one.rows for one in group) <= _FULL_ROWS else []


def _runs_to_join(parts: list[_Written]) -> Iterator[list[_Written]]:
    """Neighbours that fit into one part, for the end of a run."""
    group: list[_Written] = []
    for one in [*parts, None]:
        if one is not None and sum(other.rows for other in group) + one.rows <= _FULL_ROWS:
            group.append(one)
            continue
        if len(group) > 1:
            yield group
        group = [one] if one is not None else []
