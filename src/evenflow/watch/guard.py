"""Around every hook: its time is taken, and no failure of it reaches training.

The first failure takes everything off and becomes one warning; training goes on
as if nothing had been there.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, final

import torch

from evenflow.watch.governor import Governor


@final
class Guard:
    """Lets hooks run, at the governor's expense.

    Args:
        governor: Is told what hooks spend.
        failed: Called with the first failure.
    """

    def __init__(self, governor: Governor, failed: Callable[[str], None]) -> None:
        self._governor = governor
        self._failed = failed
        self.trouble: str | None = None
        """The failure that ended watching before its time; None if there was none."""
        self.paused = False
        """Whether hooks do nothing, because evenflow itself runs the model."""

    def timed(
        self, hook: Callable[..., None], spent: Callable[[float], None] | None = None
    ) -> Callable[..., None]:
        """The hook with its time taken and its failures kept from training.

        ``spent`` is told the seconds, as the governor is.

        Traced into a compiled graph it is nothing; see :mod:`evenflow.watch.graph`.
        """

        def timed(*args: Any) -> None:
            if torch.compiler.is_compiling() or self.paused:
                return
            began = perf_counter()
            try:
                hook(*args)
            except Exception as error:
                self.fail(error)
            seconds = perf_counter() - began
            self._governor.spend(seconds)
            if spent is not None:
                spent(seconds)

        return timed

    def run(self, call: Callable[..., None], *args: Any) -> None:
        """Call something once, its failures kept from training."""
        try:
            call(*args)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Something inside evenflow went wrong."""
        if self.trouble is None:
            self.trouble = f"{type(error).__name__}: {error}"
            self._failed(self.trouble)
