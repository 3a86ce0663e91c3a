"""A limit of processor time for a block of code."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

AGAIN = 0.1
"""Share of the time after which the error comes again."""


@contextlib.contextmanager
def at_most(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Raise an error in the block once it has taken so much processor time.

    A block that goes on all the same, because it takes the error for a Ctrl-C and tidies up, gets
    it again after each further tenth of that time.
    """

    def stop(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
