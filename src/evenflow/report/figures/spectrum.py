"""How the entries of a tensor spread over powers of two, and what float formats would lose of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evenflow.flow import FORMATS, Exponents, Flow, Role, Stats


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How the entries of one role spread over powers of two.

    Attributes:
        role: The role.
        exponents: Counts by exponent.
        entries: Number of entries, zeros and non-finite ones included.
        zeros: How many are exactly zero.
        lost: Format → shares of the non-zero entries that (would become zero,
            keep fewer digits, overflow) in it.
    """

    role: Role
    exponents: Exponents
    entries: int
    zeros: int
    lost: dict[str, tuple[float, float, float]]


def spectrum(flow: Flow, role: Role) -> Spectrum | None:
    """The exponents of all entries of a role together; None where they are not known."""
    parts = [
        row.stats for row in flow.select(role) if row.stats is not None and row.stats.exponents is not None
    ]
    if not parts:
        return None
    stats = Stats.merge_all(parts)
    if stats.exponents is None or not stats.exponents.counts:
        return None
    return Spectrum(
        role=role,
        exponents=stats.exponents,
        entries=stats.count,
        zeros=stats.zero_count or 0,
        lost={
            name: (
                stats.underflow_fraction(name) or 0.0,
                (stats.subnormal_fraction(name) or 0.0) - (stats.underflow_fraction(name) or 0.0),
                stats.overflow_fraction(name) or 0.0,
            )
            for name in FORMATS
        },
    )


def exponents_by_place(flow: Flow, role: Role, limit: int) -> tuple[tuple[str, str, Stats], ...]:
    """Statistics of at most ``limit`` stretches of neighbouring places: (first, last, merged)."""
    items = [(place, stats) for place, stats in flow.stats(role).items() if stats.exponents is not None]
    size = max(1, math.ceil(len(items) / limit))
    stretches = [items[start : start + size] for start in range(0, len(items), size)]
    return tuple((part[0][0], part[-1][0], Stats.merge_all(stats for _, stats in part)) for part in stretches)
