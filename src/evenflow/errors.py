"""Mistakes that a user can mend.

Every message says what was found, where, what was expected and what to do next.
"""

from __future__ import annotations


class EvenflowError(ValueError):
    """Something outside evenflow must be changed; the text says what."""


class TargetError(EvenflowError):
    """The TARGET of a command names nothing that can be used."""


class ModelError(EvenflowError):
    """The model raised, or returned nothing that a loss could use."""


class LossError(EvenflowError):
    """The loss raised, is no scalar, or has no gradient."""


class ProgramError(EvenflowError):
    """The parts of a Program do not fit together, or one of them gives nothing."""


class MissingPackageError(EvenflowError, ImportError):
    """An optional package is needed; the text holds the install command."""

    def __init__(self, package: str, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed. "
            f"Install it with: pip install {package}   (or: pip install 'evenflow[{extra}]')"
        )
