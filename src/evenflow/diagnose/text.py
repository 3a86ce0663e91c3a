"""Numbers and places in the words of a finding."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.flow import LOSS_PATH, Row


def factor(decades: float) -> str:
    """A ratio given as its log10: ``7.2``, ``350``, ``10^16.2``; its sign is dropped."""
    decades = abs(decades)
    if decades >= 4.0:
        return f"10^{decades:.1f}"
    value = 10.0**decades
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def number(value: float) -> str:
    """Two figures, as people write them: ``0.031``, ``2.3``, ``450``, ``1.2e+07``."""
    return f"{value:.0f}" if 100.0 <= abs(value) < 1e5 else f"{value:.2g}"


def percent(fraction: float) -> str:
    """``0.567`` → ``57 %``; small but not zero stays so."""
    if 0.0 < fraction < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < fraction < 1.0 else f"{100.0 * fraction:.0f} %"


def count(number: int, noun: str) -> str:
    """``1 layer``, ``3 layers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listing(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def place(row: Row) -> str:
    """Where an op ran, as a sentence says it: ``Linear layers.0``, ``add[1] of Block blocks.2``."""
    op, path = row.site.op, row.site.path
    if path == LOSS_PATH:
        return f"{op} in the loss"
    owner = f"{row.module_type} {path}".strip()
    if path and any(module.path == path for module in row.output_of):
        return owner
    op += f"[{row.site.index}]" if row.site.index else ""
    return f"{op} of {owner}" if path else f"{op} of the model itself"


def site(row: Row) -> str:
    """The place of an op as a finding's site: its module's path, else the op's label."""
    path = row.site.path
    return path if path and any(module.path == path for module in row.output_of) else row.site.label


def module_name(path: str) -> str:
    """A module path in a sentence; the model itself has an empty one."""
    return path or "the model itself"
