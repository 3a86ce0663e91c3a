"""The error that theory raises on a user's mistake."""

from __future__ import annotations

from evenflow.errors import EvenflowError


class TheoryError(EvenflowError):
    """A question that theory cannot answer as it was put; the text says what to change."""
