"""What can be wrong with a patch."""

from __future__ import annotations

from evenflow.errors import EvenflowError


class PatchError(EvenflowError):
    """A patch does not fit what it is given to, or is no patch; nothing was changed."""
