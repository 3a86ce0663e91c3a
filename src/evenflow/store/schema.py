"""The tables of a run.

* ``flow``: a row per site and sampled step: ``step`` and the columns of a Flow.
* ``scalars``: a figure per step and name: loss, learning rate, gradient norm …
* ``parameters``: figures of single parameters that no Flow holds, such as the
  mean second moment that the optimizer keeps.
* ``events``: what happened and when, in words.

Every table is *long*: a new figure is a new row and never a new column, so that
old readers read new runs. Words that come again and again are dictionaries, which
are read several times as fast as strings.
"""

from __future__ import annotations

import pyarrow as pa

from evenflow.flow.arrow import SCHEMA

VERSION = 1
"""Raised when a reader of the old form would misread the new one."""

_STEP = pa.field("step", pa.int64(), nullable=False)
_WORD = pa.dictionary(pa.int32(), pa.string())
_NAME = pa.field("name", _WORD, nullable=False)
_PATH = pa.field("path", _WORD, nullable=False)

TABLES: dict[str, pa.Schema] = {
    "flow": pa.schema(
        [_STEP, *(field.with_type(_WORD) if field.type == pa.string() else field for field in SCHEMA)]
    ),
    "scalars": pa.schema([_STEP, _NAME, pa.field("value", pa.float64(), nullable=False)]),
    "parameters": pa.schema([_STEP, _PATH, _NAME, pa.field("value", pa.float64(), nullable=False)]),
    "events": pa.schema(
        [_STEP, pa.field("kind", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]
    ),
}
"""Name → columns."""
