"""Parts: the Parquet files of a run, each of which can prove that it is whole.

A part holds the ``first``-th to the ``last``-th flush of one table, and its name says so:

    flow-00000017-00000024-0c3f…e1.parquet

The last field is the BLAKE2b digest of the file's bytes. A file that was
truncated, altered or exchanged for another no longer fits its name and is never
decoded. Parquet's own checksums would not do: they cover the pages, not the
footer that says what the pages mean. The run's id, the table and the range stand
in the file too, so a part of another run, or one that was renamed to hide its
neighbours, is foreign.

Any Parquet reader reads a part; the digest asks nothing of it.

References:
    RFC 7693, The BLAKE2 Cryptographic Hash and Message Authentication Code.
    Apache Parquet format, "Checksumming".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import pyarrow as pa
import pyarrow.parquet as pq

from evenflow.store.schema import TABLES, VERSION

_NAME = re.compile(r"([a-z]+)-(\d{8,})-(\d{8,})-([0-9a-f]{32})\.parquet")
_LABEL = b"evenflow"
_GROUP_ROWS = 1 << 14
"""Rows that are decoded together: of a part with many steps only the group of one step need be."""


class PartError(Exception):
    """A part cannot be used; the text says why, without its name."""


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """What a part's name says.

    Attributes:
        table: Which table it belongs to.
        first: Number of its first flush, from 0.
        last: Number of its last flush.
        digest: BLAKE2b-128 of its bytes, in hexadecimal digits.
    """

    table: str
    first: int
    last: int
    digest: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.table}-{self.first:08d}-{self.last:08d}-{self.digest}.parquet"

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """The part of that name; None for any other file."""
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in TABLES or int(match[2]) > int(match[3]):
            return None
        return cls(match[1], int(match[2]), int(match[3]), match[4])


def seal(run: str, table: str, first: int, last: int, rows: pa.Table) -> tuple[Part, bytes]:
    """A part and its bytes.

    Args:
        run: The run's id.
        table: Name of the table.
        first: Number of the first flush in ``rows``.
        last: Number of the last one.
        rows: The rows, with the columns of that table.
    """
    sink = pa.BufferOutputStream()
    rows = rows.replace_schema_metadata({_LABEL: _label(run, table, first, last)}).unify_dictionaries()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True, row_group_size=_GROUP_ROWS)
    content: bytes = sink.getvalue().to_pybytes()
    return Part(table, first, last, _digest(content)), content


def unseal(run: str | None, part: Part, content: bytes) -> Sealed:
    """What a part holds, once it has proved to be whole and of this run.

    Args:
        run: The run's id; None to accept any run's.
        part: What its name says.
        content: Its bytes.

    Raises:
        PartError: It is not what its name says, of another run, or written by a newer version.
    """
    if _digest(content) != part.digest:
        raise PartError("its bytes do not match the checksum in its name: it was cut short or altered")
    with _decoding():
        sealed = Sealed(part.table, content)
        label = sealed.label
        expected = _label(
            run if run is not None else label.partition(" ")[0], part.table, part.first, part.last
        )
        if label != expected:
            raise PartError(f"it says {label!r} of itself where {expected!r} was expected")
        return sealed


@final
class Sealed:
    """The rows of a proven part, decoded as they are asked for.

    Args:
        table: Name of the table.
        content: The part.
    """

    def __init__(self, table: str, content: bytes) -> None:
        self._made_of = table, content
        self._schema = TABLES[table]
        words = [field.name for field in self._schema if pa.types.is_dictionary(field.type)]
        self._file = file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=words)
        self._last: tuple[list[int], pa.Table] | None = None
        place = file.schema_arrow.get_field_index("step")
        groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
        self._spans = [_span(group.column(place).statistics) for group in groups]

    def __reduce__(self) -> tuple[type[Sealed], tuple[str, bytes]]:
        """Made anew on the other side: an open file cannot travel."""
        return Sealed, self._made_of

    @property
    def label(self) -> str:
        """What it says of itself."""
        label: bytes = (self._file.schema_arrow.metadata or {}).get(_LABEL, b"")
        return label.decode()

    @property
    def span(self) -> tuple[float, float]:
        """Between which steps its rows lie."""
        lows, highs = zip((math.inf, -math.inf), *self._spans, strict=True)
        return min(lows), max(highs)

    def rows(self, columns: list[str] | None = None) -> pa.Table:
        """All rows.

        Args:
            columns: Which columns to decode; all by default.

        Raises:
            PartError: The file has other columns than its table.
        """
        schema = self._schema
        wanted = schema if columns is None else pa.schema([schema.field(column) for column in columns])
        with _decoding():
            return self._file.read(columns=wanted.names).select(wanted.names).cast(wanted)

    def rows_near(self, step: int) -> pa.Table:
        """The rows of a step, and of its neighbours in the file.

        The last answer is kept, for Flows are read one step after the other.

        Raises:
            PartError: As in :meth:`rows`.
        """
        groups = [group for group, (low, high) in enumerate(self._spans) if low <= step <= high]
        if self._last is None or self._last[0] != groups:
            with _decoding():
                rows = self._file.read_row_groups(groups, columns=self._schema.names)
                self._last = groups, rows.select(self._schema.names).cast(self._schema)
        return self._last[1]


def covering(parts: list[Part]) -> list[Part]:
    """Parts that hold every flush once, the largest first where several hold the same.

    Compaction writes the joined part before it deletes the small ones, so for a
    moment (for ever, after a crash) both are there.
    """
    chosen: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.first, -p.last)):
        if not chosen or part.first > chosen[-1].last:
            chosen.append(part)
    return chosen


def gaps(parts: list[Part], count: int | None = None) -> list[int]:
    """Numbers of the flushes that no part holds.

    Args:
        parts: Parts of one table, as :func:`covering` gives them.
        count: How many flushes there were, where that is known.
    """
    missing: list[int] = []
    expected = 0
    for part in parts:
        missing += range(expected, part.first)
        expected = part.last + 1
    return missing + list(range(expected, count or 0))


@contextmanager
def _decoding() -> Iterator[None]:
    """Say of a file that cannot be decoded that it is no part."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise PartError(f"it is no table of this kind ({error})") from error


def _span(statistics: pq.Statistics | None) -> tuple[float, float]:
    """The lowest and highest value of a group of rows; unbounded where the file does not say."""
    if statistics is None or not statistics.has_min_max:
        return -math.inf, math.inf
    return statistics.min, statistics.max


def _label(run: str, table: str, first: int, last: int) -> str:
    return f"{run} {table} {first} {last} schema {VERSION}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
