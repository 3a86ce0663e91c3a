"""Whose gradient was bad, before the reduction made it everybody's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evenflow.watch.ranks.message import Backward, Sampled

_FACTOR = 10.0
"""By how much a norm stands out. Of draws of one distribution, a share of 1/10² at most is above 10 times
their root mean square (Markov's inequality on squared norms)."""


class _Seen(NamedTuple):
    rank: int
    micro_batch: int
    backward: Backward


def outliers(samples: Sequence[Sampled]) -> tuple[list[str], dict[str, float]]:
    """What to tell of a step, and figures of it.

    Args:
        samples: The step as each rank has seen it.

    Returns:
        Sentences about ranks whose own gradient, in one micro-batch, was not finite or
        is more than ten times the root mean square of all others'; and for each
        rank the norm of its own gradient, the largest of its micro-batches.
    """
    texts: list[str] = []
    figures: dict[str, float] = {}
    for optimizer in dict.fromkeys(one.optimizer for sample in samples for one in sample.backwards):
        seen = list(_seen(samples, optimizer))
        suffix = f"/{optimizer}" if optimizer else ""
        for rank in sorted({one.rank for one in seen}):
            of_rank = [one.backward for one in seen if one.rank == rank]
            broken = any(one.nonfinite for one in of_rank)
            figures[f"gradient_norm_of_rank{suffix}/{rank}"] = (
                math.nan if broken else max(one.norm for one in of_rank)
            )
        if len({one.rank for one in seen}) > 1:
            texts += _texts(seen)
    return texts, figures


def _seen(samples: Sequence[Sampled], optimizer: str) -> Iterator[_Seen]:
    for rank, sample in enumerate(samples):
        own = [one for one in sample.backwards if one.optimizer == optimizer]
        yield from (_Seen(rank, number, one) for number, one in enumerate(own))


def _texts(seen: Sequence[_Seen]) -> Iterator[str]:
    for one in seen:
        where = f"in micro-batch {one.micro_batch}, before the reduction"
        if one.backward.nonfinite:
            yield (
                f"Rank {one.rank} had a gradient that is not finite {where}; "
                f"it came first at {one.backward.worst}."
            )
            continue
        others = [other.backward.norm for other in seen if other is not one and not other.backward.nonfinite]
        usual = math.sqrt(sum(norm * norm for norm in others) / len(others)) if others else math.inf
        if one.backward.norm > _FACTOR * usual:
            yield (
                f"Rank {one.rank} had a gradient of norm {one.backward.norm:.3g} {where}; the root mean "
                f"square of the others is {usual:.3g}. It is largest at {one.backward.worst}."
            )
