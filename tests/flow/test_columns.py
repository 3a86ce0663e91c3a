"""Columns by way of their memory: as Arrow's own conversion gives them, and without pandas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from evenflow.flow.columns import no_rows, to_numpy, where


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("known", [True, False])
def test_values_and_gaps_are_those_of_arrow(kind: pa.DataType, known: bool) -> None:
    values = [*range(-9, 21)] if known else [None if i % 3 == 0 else i for i in range(30)]
    array = pa.array(values, kind)
    column = pa.chunked_array([array.slice(3, 10), array.slice(5, 0), array.slice(11)])
    np.testing.assert_array_equal(to_numpy(column), column.to_numpy())
    np.testing.assert_array_equal(
        to_numpy(array.slice(7, 9)), array.slice(7, 9).to_numpy(zero_copy_only=False)
    )


def test_a_column_without_chunks_is_empty() -> None:
    assert to_numpy(no_rows(pa.schema([("a", pa.int32())]))["a"].slice(0)).shape == (0,)


def test_chosen_rows() -> None:
    table = pa.table({"a": list(range(20)), "b": [[i] * (i % 3) for i in range(20)]})
    chosen = np.arange(20) % 7 == 2
    assert where(table, chosen).to_pylist() == [row for row in table.to_pylist() if row["a"] % 7 == 2]


def test_pandas_stays_where_it_is() -> None:
    code = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from evenflow.flow.columns import no_rows, to_numpy, where\n"
        "schema = pa.schema([('a', pa.int32()), ('d', pa.dictionary(pa.int32(), pa.string()))])\n"
        "rows = pa.table([pa.nulls(9, field.type) for field in schema], schema=schema)\n"
        "where(rows, np.isnan(to_numpy(rows['a']))); no_rows(schema)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
