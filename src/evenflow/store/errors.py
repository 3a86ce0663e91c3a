"""What can be wrong with a stored run."""

from __future__ import annotations

import sys
import warnings

from evenflow.errors import EvenflowError


class StoreError(EvenflowError):
    """A run cannot be opened or made; the text says why and what to do."""


class StoreWarning(UserWarning):
    """Part of a run could not be written or read; everything else is as it should be."""


def tell(message: str, category: type[Warning] = StoreWarning) -> None:
    """Warn, but never raise: under ``-W error`` the text goes to stderr, for a training run must go on."""
    try:
        warnings.warn(message, category, stacklevel=3)
    except Warning:
        print(f"{category.__name__}: {message}", file=sys.stderr)
