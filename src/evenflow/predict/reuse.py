"""Repeated layers: what follows from equal tables is worked out once.

The layers of a deep net are copies of a few, and what goes through them soon
changes no more. So tables get *numbers*: one for all that agree to 11 digits. What
an op makes of tables is remembered by their numbers and the op's name, and where
a layer's inputs equal those of an earlier one, its whole transfer is looked up.

Gradients shrink or grow from layer to layer, but an op's output is linear in
them. The table of a cotangent is therefore numbered as that of x/σ, σ² = E x², and
what is looked up is scaled by the ratio of the σ.

What is remembered belongs to one prediction; :func:`forget` ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

from evenflow.predict.axes import rounded
from evenflow.predict.table import Table

T = TypeVar("T")

MOST = 4096
"""Classes up to which a table gets a number; to digest a large one takes longer than most ops do."""
LEAST = 1e-280
"""Mean squares below are taken as they are: near the end of double precision a ratio has no digits."""

_numbers: dict[Any, int] = {}
_tables: dict[Hashable, tuple[Table, float]] = {}
_others: dict[Hashable, Any] = {}


class Known(Protocol):
    """A field, as far as reuse is concerned."""

    cotangent: bool

    @property
    def table(self) -> Table:
        """Means and second moments."""


def forget() -> None:
    """Drop all that is remembered."""
    _numbers.clear()
    _tables.clear()
    _others.clear()


def number(table: Table, scale: float = 1.0) -> int | None:
    """The number of the table of x/scale; None for large ones."""
    if table.second.size > MOST:
        return None
    name = (
        table.dims,
        rounded(table.second / scale**2).tobytes(),
        None if table.mean is None else rounded(table.mean / scale).tobytes(),
    )
    return _numbers.setdefault(name, len(_numbers))


def as_it_is(table: Table) -> int | None:
    """The number of a table."""
    memory = table.__dict__
    if "number" not in memory:
        memory["number"] = number(table)
    found: int | None = memory["number"]
    return found


def up_to_scale(table: Table) -> tuple[int | None, float]:
    """The number of the table of x/σ, and σ."""
    memory = table.__dict__
    if "unit" not in memory:
        scale = table.mean_square**0.5 if table.mean_square > LEAST else 1.0
        memory["unit"] = number(table, scale), scale
    found: tuple[int | None, float] = memory["unit"]
    return found


def numbers(parts: Sequence[Known]) -> tuple[tuple[int, ...] | None, float]:
    """Numbers of the tables of some fields, and the product of the scales of the cotangents among them."""
    found, scale = [], 1.0
    for part in parts:
        if part.cotangent:
            each, own = up_to_scale(part.table)
            scale *= own
        else:
            each = as_it_is(part.table)
        if each is None:
            return None, 1.0
        found.append(each)
    return tuple(found), scale


def table_of(name: Hashable, scale: float, compute: Callable[[], Table]) -> Table:
    """What ``compute`` gives, or gave under that name at another scale.

    Args:
        name: All that the table of x/scale depends on; None not to remember it.
        scale: Of the cotangents that the tensor is linear in; 1 without any.
        compute: Works the table out.
    """
    if name is None:
        return compute()
    known = _tables.get(name)
    if known is None:
        _tables[name] = table, _ = compute(), scale
        return table
    table, before = known
    return table if scale == before else _rescaled(table, scale / before)


def _rescaled(table: Table, factor: float) -> Table:
    """The table of ``factor · x``, with what was found out about that of x."""
    result = table.scaled(factor)
    known, memory = table.__dict__, result.__dict__
    for name in ("axes", "shape", "centred"):
        if name in known:
            memory[name] = known[name]
    memory["mean_square"] = table.mean_square * factor**2
    memory["average"] = table.average * factor
    if table.mean_square * min(factor**2, 1.0) > LEAST:
        unit, scale = up_to_scale(table)
        memory["unit"] = unit, scale * factor
    return result


def once(name: Hashable, compute: Callable[[], T]) -> T:
    """What ``compute`` gives, or gave under that name; with None it is not remembered."""
    if name is None:
        return compute()
    if name not in _others:
        _others[name] = compute()
    found: T = _others[name]
    return found
