"""Whether a parameter still holds the numbers that an initialiser gave it.

Initialisers leave marks that no training keeps. Uniform ones have no entry above
√3 times their RMS. Normal ones have a mean of zero and one of the few deviations
that are in use. Biases and gains are all zero, all one, or within PyTorch's
bound of 1/√fan_in. Training moves some entry out of all of these.

References:
    Glorot, Bengio, AISTATS 2010; He et al., ICCV 2015; LeCun et al., "Efficient BackProp", 1998;
    ``torch.nn.Linear.reset_parameters`` and ``tf.keras.initializers`` (their defaults).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from evenflow.flow import Row, Stats

ENTRIES = 64
"""Entries of a weight below which its distribution is not told (a judgement)."""
CHANCE = 4.0
"""Standard errors that a fresh weight's mean and RMS may be off (chance leaves less than 1 in 10 000)."""
PLAIN = (0.01, 0.02, 0.05, 1.0)
"""Deviations in use that hang on no fan: by hand, BERT's and GPT-2's, Keras' and ``nn.Embedding``'s."""
_ROUNDING = 1e-5
"""Relative error that float32 leaves in a mean of squares (a judgement: some hundred units of rounding)."""


def are_fresh(rows: Iterable[Row]) -> bool:
    """Whether all of some parameters look as initialisers leave them.

    Args:
        rows: Of the role ``PARAMETER``; weights and the biases beside them.

    Returns:
        False if one shows that it was trained, or if none is large enough to tell.
    """
    every = [row for row in rows if row.stats is not None]
    weights = {row.site.path.rpartition(".")[0]: row for row in every if len(row.shape) >= 2}
    told = [row for row in weights.values() if row.stats is not None and row.stats.count >= ENTRIES]
    vectors = [row for row in every if len(row.shape) < 2]
    return (
        bool(told)
        and all(_is_uniform(row.stats) or _is_normal(row) for row in told if row.stats is not None)
        and all(_is_plain(row, weights) for row in vectors)
    )


def _fans(row: Row) -> tuple[int, int]:
    """Fan-in and fan-out of a weight [out, in, ...]."""
    outputs, inputs, *kernel = row.shape
    return inputs * math.prod(kernel), outputs * math.prod(kernel)


def _is_uniform(stats: Stats) -> bool:
    """Whether no entry is larger than that of a uniform distribution of this size."""
    error = math.sqrt(0.2 / stats.count)  # of the RMS of U(±a): u² has deviation .894 of its mean
    return stats.abs_max is not None and stats.abs_max <= math.sqrt(3.0) * stats.rms * (1.0 + CHANCE * error)


def _is_normal(row: Row) -> bool:
    """Whether mean and deviation are those of an initialiser in use."""
    stats = row.stats
    assert stats is not None
    if abs(stats.mean) > CHANCE * stats.rms / math.sqrt(stats.count):
        return False
    inputs, outputs = _fans(row)
    usual = (math.sqrt(2.0 / inputs), math.sqrt(2.0 / outputs), math.sqrt(2.0 / (inputs + outputs)))
    known = (*usual, math.sqrt(1.0 / inputs), math.sqrt(1.0 / outputs), *PLAIN)
    error = CHANCE / math.sqrt(2.0 * stats.count)
    return any(abs(stats.rms / deviation - 1.0) <= error for deviation in known)


def _is_plain(row: Row, weights: Mapping[str, Row]) -> bool:
    """Whether a vector is all zero, all one, or within the default bound of the weight beside it."""
    stats, weight = row.stats, weights.get(row.site.path.rpartition(".")[0])
    assert stats is not None
    if stats.mean_square == 0.0:
        return True
    if abs(stats.mean - 1.0) < _ROUNDING and abs(stats.mean_square - 1.0) < _ROUNDING:
        return True
    if weight is None or stats.abs_max is None:
        return False
    return stats.abs_max <= (1.0 + _ROUNDING) / math.sqrt(_fans(weight)[0])
