"""Rows as an Arrow table, the exchange format: pandas, polars, DuckDB and Parquet read it as it is.

Imported only where a table is asked for, since Arrow is slow to load and rules
and explanations do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from evenflow.flow.site import ModuleCall, Role, Site, Status
from evenflow.flow.stats import Exponents, Stats
from evenflow.flow.table import Row

_MODULE_CALL = pa.struct([("path", pa.string()), ("call", pa.int32())])

SCHEMA = pa.schema(
    [
        pa.field("order", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("call", pa.int32(), nullable=False),
        pa.field("op", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("time", pa.int32()),
        pa.field("role", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("module_type", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("inputs", pa.list_(pa.int32()), nullable=False),
        pa.field("output_of", pa.list_(_MODULE_CALL), nullable=False),
        pa.field("count", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("mean_square", pa.float64()),
        pa.field("abs_max", pa.float64()),
        pa.field("zero_count", pa.int64()),
        pa.field("nonfinite_count", pa.int64()),
        pa.field("exponent_low", pa.int16()),
        pa.field("exponent_counts", pa.list_(pa.int64())),
        pa.field("dead_fraction", pa.float64()),
        pa.field("saturated_fraction", pa.float64()),
        pa.field("sample_spread", pa.float64()),
        pa.field("token_spread", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("twin_fraction", pa.float64()),
        pa.field("half_width", pa.float64()),
    ]
)
"""Columns of a Flow's table; the fields of :class:`Row`, flattened."""

LATER = ("sample_spread", "token_spread", "entropy", "twin_fraction")
"""Columns that tables of older runs lack."""


def to_arrow(rows: Iterable[Row]) -> pa.Table:
    """The rows as an Arrow table with the columns of :data:`SCHEMA`."""
    return pa.Table.from_pylist([_flatten(row) for row in rows], schema=SCHEMA)


def from_arrow(table: pa.Table) -> tuple[Row, ...]:
    """The typed rows of an Arrow table.

    Raises:
        ValueError: A column of :data:`SCHEMA` is missing.
    """
    missing = [name for name in SCHEMA.names if name not in (*table.column_names, *LATER)]
    if missing:
        raise ValueError(
            f"This is not a Flow table: it has no column {', '.join(missing)}. "
            "Expected the columns of evenflow.flow.arrow.SCHEMA; "
            f"found {', '.join(table.column_names) or 'none'}."
        )
    for name in LATER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.float64()))
    return tuple(_unflatten(record) for record in table.to_pylist())


def _flatten(row: Row) -> dict[str, Any]:
    site, stats = row.site, row.stats
    record: dict[str, Any] = {
        "order": row.order,
        "path": site.path,
        "call": site.call,
        "op": site.op,
        "index": site.index,
        "time": site.time,
        "role": str(site.role),
        "status": str(row.status),
        "module_type": row.module_type,
        "shape": list(row.shape),
        "dtype": row.dtype,
        "source": row.source,
        "inputs": list(row.inputs),
        "output_of": [{"path": m.path, "call": m.call} for m in row.output_of],
        "dead_fraction": row.dead_fraction,
        "saturated_fraction": row.saturated_fraction,
        "sample_spread": row.sample_spread,
        "token_spread": row.token_spread,
        "entropy": row.entropy,
        "twin_fraction": row.twin_fraction,
        "half_width": row.half_width,
    }
    if stats is not None:
        exponents = stats.exponents
        record |= {
            "count": stats.count,
            "mean": stats.mean,
            "mean_square": stats.mean_square,
            "abs_max": stats.abs_max,
            "zero_count": stats.zero_count,
            "nonfinite_count": stats.nonfinite_count,
            "exponent_low": None if exponents is None else exponents.low,
            "exponent_counts": None if exponents is None else list(exponents.counts),
        }
    return record


def _unflatten(record: dict[str, Any]) -> Row:
    stats = None
    if record["count"] is not None:
        counts = record["exponent_counts"]
        stats = Stats(
            count=record["count"],
            mean=record["mean"],
            mean_square=record["mean_square"],
            abs_max=record["abs_max"],
            zero_count=record["zero_count"],
            nonfinite_count=record["nonfinite_count"],
            exponents=None if counts is None else Exponents(record["exponent_low"], tuple(counts)),
        )
    return Row(
        site=Site(
            path=record["path"],
            op=record["op"],
            role=Role(record["role"]),
            call=record["call"],
            index=record["index"],
            time=record["time"],
        ),
        order=record["order"],
        module_type=record["module_type"],
        shape=tuple(record["shape"]),
        dtype=record["dtype"],
        status=Status(record["status"]),
        source=record["source"],
        inputs=tuple(record["inputs"]),
        output_of=tuple(ModuleCall(m["path"], m["call"]) for m in record["output_of"]),
        stats=stats,
        dead_fraction=record["dead_fraction"],
        saturated_fraction=record["saturated_fraction"],
        sample_spread=record["sample_spread"],
        token_spread=record["token_spread"],
        entropy=record["entropy"],
        twin_fraction=record["twin_fraction"],
        half_width=record["half_width"],
    )
