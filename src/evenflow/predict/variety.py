"""How much differs within a tensor, from its table: the columns that measure gives (evenflow.trace.variety).

spread = 1 − E x_a x_b / E x²,    a ≠ b samples (tokens of one sample), all else equal.
"""

from __future__ import annotations

import numpy as np

from evenflow.predict import reuse
from evenflow.predict.table import Table


def sample_spread(table: Table) -> float | None:
    """Spread along the first dimension; None for fewer than two samples, or nothing but zeros."""
    return _once(table, 0) if len(table.shape) > 1 else None


def token_spread(table: Table) -> float | None:
    """Spread along the second of three dimensions; None for other shapes."""
    return _once(table, 1) if len(table.shape) == 3 else None


def _once(table: Table, dim: int) -> float | None:
    number, _ = reuse.up_to_scale(table)
    return reuse.once(None if number is None else ("spread", number, dim), lambda: _spread(table, dim))


def _spread(table: Table, dim: int) -> float | None:
    table = table.single(dim)
    if not table.dims[dim] or not table.mean_square > 0:
        return None
    values = table.second
    for at, axis in reversed(list(enumerate(table.axes))):
        weights = np.zeros(axis.classes)
        if at == table.first_axis(dim):
            differ = axis.counts[: axis.segments**2]
            weights[: axis.segments**2] = differ / differ.sum()
        else:
            weights[axis.agree] = axis.weights
        values = values @ weights
    return 1.0 - float(values) / table.mean_square
