"""The error that theory raises on a user's mistake."""

from __future__ import annotations

import math

from evenflow.errors import EvenflowError


class TheoryError(EvenflowError):
    """A question that theory cannot answer as it was put; the text says what to change."""


def require_variances(**named: float) -> None:
    """Raise unless every value is a finite number ≥ 0, as a variance or a mean square must be."""
    for name, value in named.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise TheoryError(f"{name} is a variance, a finite number ≥ 0, got {value}")
