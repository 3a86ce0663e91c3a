"""How a search tells how far it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Track(Protocol):
    """Passes items through and shows how far they got, under a title."""

    def __call__(self, title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
        """The same items."""


def silently(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """Shows nothing."""
    return items
