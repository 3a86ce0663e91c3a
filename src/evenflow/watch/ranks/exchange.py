"""Messages between ranks: one all-gather, over connections of evenflow's own.

Training's own process groups are not touched: a collective more on one of them, or
one that not everybody calls, would hang training. The group here is made aside,
over gloo, and not even PyTorch's list of groups knows of it. It is used by one
thread of its own on each rank, and every wait in it ends after :data:`PATIENCE`.

Messages differ in length and an all-gather wants equal ones, so all ranks keep room
for the longest so far. A message that is longer goes in a second round, for which
everybody makes room at once: each sees all lengths in the first.
"""

from __future__ import annotations

import re
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 60.0
"""Seconds to wait for another rank. Ranks that train together meet at every step, so they are that far
apart only if one of them does not watch, has died, or does something long between two steps."""
_ROOM = 1 << 16
"""Bytes of a message at first."""
_HEAD = 8
"""Bytes in front of a message that hold its length."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1e-4, 5e-3
"""Seconds between two looks whether the others have answered: no longer than an answer takes between
machines at first, and later so that waiting costs nothing."""
_ROOMS = "evenflow/rooms"
"""Key under which rank 0 counts where it has waited for the others."""
_entered = 0
"""The last of these that this process entered."""
_abandoned: list[Any] = []
"""Groups that still wait for somebody. Letting go of one would wait for it."""


class ExchangeError(Exception):
    """The other ranks could not be reached; the text says why."""


@final
class Exchange:
    """Connections to all other ranks, which all have to make one at about the same time.

    Args:
        patience: Seconds to wait for the others, here and in :meth:`gather`.

    Raises:
        ExchangeError: The others did not come.
    """

    def __init__(self, patience: float) -> None:
        from torch._C._distributed_c10d import AllgatherOptions  # not in every build of PyTorch

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._room = _ROOM
        self._patience = patience
        self._options = AllgatherOptions()
        self._options.timeout = timedelta(seconds=10.0 * patience)  # ours comes first
        self.closed = False
        """Set by any thread to end the wait for others."""
        store = dist.distributed_c10d._get_default_store()
        room = _opened(store, patience) if self.rank else store.add(_ROOMS, 1)
        try:
            self._group: Any = dist.ProcessGroupGloo(
                dist.distributed_c10d.PrefixStore(f"evenflow/{room}", store),
                self.rank,
                self.size,
                timedelta(seconds=patience),
            )
        except RuntimeError as error:
            if self.rank == 0:
                store.set(_given_up(room), "")
            raise ExchangeError(
                f"the other ranks did not come within {patience:g} s ({_first_line(error)})"
            ) from error

    def gather(self, message: bytes) -> list[bytes]:
        """The messages of all ranks, in order; called by every rank with its own.

        Raises:
            ExchangeError: A rank did not answer in time, or is gone.
        """
        while True:
            sent = _packed(message, self._room)
            received = [torch.empty_like(sent) for _ in range(self.size)]
            try:
                self._wait(self._group.allgather([received], [sent], self._options))
            except RuntimeError as error:
                raise ExchangeError(f"another rank does not answer ({_first_line(error)})") from error
            lengths = [int(one[:_HEAD].numpy().view(np.int64)[0]) for one in received]
            longest = _HEAD + max(lengths)
            if longest <= self._room:
                return [
                    one.numpy()[_HEAD : _HEAD + n].tobytes() for one, n in zip(received, lengths, strict=True)
                ]
            self._room = 1 << (longest - 1).bit_length()

    def close(self) -> None:
        """Drop the connections; a rank that waits for this one learns of it at once."""
        self.closed = True
        self._group = None

    def _wait(self, work: Any) -> None:
        """Wait in Python: a process that ends while C++ waits in another thread would be aborted.

        Pauses are counted and not the clock, which goes on while a process is stopped.
        """
        waited, pause = 0.0, _SHORTEST_PAUSE
        while not work.is_completed():
            if self.closed or waited > self._patience:
                _abandoned.append(self._group)
                raise ExchangeError("this rank has left" if self.closed else no_answer(self._patience))
            sleep(pause)
            waited += pause
            pause = min(2.0 * pause, _LONGEST_PAUSE)
        work.wait()


def _opened(store: Any, patience: float) -> int:
    """Where rank 0 waits, once it does."""
    global _entered  # noqa: PLW0603
    until = monotonic() + patience
    while True:
        room: int = store.add(_ROOMS, 0)
        if room > _entered and not store.check([_given_up(room)]):
            _entered = room
            return room
        if monotonic() > until:
            raise ExchangeError(f"rank 0 did not come within {patience:g} s")
        sleep(_LONGEST_PAUSE)


def _given_up(room: int) -> str:
    return f"evenflow/{room}/given_up"


def no_answer(seconds: float) -> str:
    """What to tell of a wait that was in vain."""
    return f"no answer from the other ranks within {seconds:g} s"


def _packed(message: bytes, room: int) -> Tensor:
    """Length and as much of the message as there is room for [room]."""
    packed = np.zeros(room, np.uint8)
    packed[:_HEAD] = np.array([len(message)], np.int64).view(np.uint8)
    head = np.frombuffer(message[: room - _HEAD], np.uint8)
    packed[_HEAD : _HEAD + len(head)] = head
    return torch.from_numpy(packed)


def _first_line(error: Exception) -> str:
    """Without gloo's source files, addresses and advice."""
    line = re.sub(r"\[[^]]*\]\s*", "", str(error).strip().partition("\n")[0])
    return line.partition(". ")[0].replace(" :", ":")
