"""What can be wrong with watching."""

from __future__ import annotations

from evenflow.errors import EvenflowError


class WatchError(EvenflowError):
    """Training cannot be watched as asked; the text says why and what to do."""


class WatchWarning(UserWarning):
    """Watching stopped or sees less than was asked; training goes on as if it were not there."""
