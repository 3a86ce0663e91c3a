"""All ranks look at the same steps, and one of them writes.

Ranks *meet*: each says what it saw since the last meeting, in one all-gather, and in
how many steps it can afford another sample. The longest wait of any rank is when all
take the next one, so that every rank keeps its budget and all agree, without a word
between meetings. Where every step is sampled there is a meeting for every step.

Meetings are held by a thread, so training does not wait for them. A step takes figures
until the next one has ended, so its meeting begins then, and the answer is waited for
one step later, when it is needed and has usually come:

    step        s          s + 1            s + 2              s + 3
    ends    (sampled)   meeting begins   answer needed   next sample at the earliest

Rank 0 makes tables of what it hears and writes them; the others write nothing. A rank
that breaks off, dies or does not come ends watching on all ranks, with one warning on
each: training goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from time import thread_time
from typing import NamedTuple, final

import pyarrow as pa
from torch import nn

from evenflow.store.errors import tell
from evenflow.watch.errors import WatchWarning
from evenflow.watch.ranks.exchange import PATIENCE, Exchange, ExchangeError, no_answer
from evenflow.watch.ranks.merge import Merger
from evenflow.watch.ranks.message import decode, encode
from evenflow.watch.ranks.placement import gradient_divisor, rank_and_size, tensor_parallel_peers
from evenflow.watch.ranks.speaker import Speaker
from evenflow.watch.sample import Step
from evenflow.watch.timeline import Timeline

_LONGEST = 1000
"""Steps between meetings at most, so that figures reach the disk; samples may be further apart."""
_GRACE = 5.0
"""Seconds that a rank whose training failed waits for meetings that others have come to already."""
_PIECE = 0.5
"""Seconds that are waited for an answer at a time."""
_MOST_MEETINGS = 64
"""Meetings that wait to be held at most; then training waits for the oldest."""


class _Meeting(NamedTuple):
    """Steps to be told of, in how many steps the next sample can be afforded, and the longest such wait."""

    steps: list[Step]
    wait: int
    agreed: Future[int]


@final
class Team:
    """The ranks that train together.

    Args:
        exchange: Connections to them.
        models: What is trained.
        every: Whether every step is sampled.
        failed: Called with what goes wrong in a meeting.
        spent: Called with the seconds that a meeting took of the processor.
    """

    def __init__(
        self,
        exchange: Exchange,
        models: Iterable[nn.Module],
        *,
        every: bool,
        failed: Callable[[Exception], None],
        spent: Callable[[float], None],
    ) -> None:
        models = list(models)
        self.rank, self.size = exchange.rank, exchange.size
        self._exchange: Exchange | None = exchange
        self._every = every
        self._failed = failed
        self._spent = spent
        self._speaker = Speaker(tensor_parallel_peers(models, self.rank), gradient_divisor(models))
        self._merger = Merger(self.size)
        self._meetings: SimpleQueue[_Meeting | None] = SimpleQueue()
        self._pending: list[Future[int]] = []
        self._met_at = 0
        self._samples_next = True
        self._next: int | None = None
        self._tables: list[tuple[str, pa.Table]] = []
        self._untold: list[Step] = []
        self._thread = threading.Thread(target=self._meet_forever, name="evenflow-ranks", daemon=True)
        self._thread.start()

    @classmethod
    def join(
        cls,
        models: Iterable[nn.Module],
        *,
        every: bool,
        failed: Callable[[Exception], None],
        spent: Callable[[float], None],
    ) -> Team | None:
        """The team of this process; None if it trains alone, or if the other ranks do not watch."""
        if rank_and_size()[1] == 1:
            return None
        try:
            exchange = Exchange(PATIENCE)
        except Exception as error:  # not every build of PyTorch has gloo
            tell(
                f"evenflow sees rank {rank_and_size()[0]} alone: {error}. Call evenflow.watch on every rank, "
                "also on those that write nothing, to see the training as a whole.",
                WatchWarning,
            )
            return None
        return cls(exchange, models, every=every, failed=failed, spent=spent)

    def step_ended(self, timeline: Timeline, wait: Callable[[], int]) -> bool:
        """Whether the step that begins is sampled, on all ranks alike.

        Args:
            timeline: Its running step is the one that begins.
            wait: In how many steps this rank can afford another sample.
        """
        begins = timeline.running.number
        if self._every:
            self._meet(timeline.take(), 1)
            return True
        if begins == self._met_at + 2:
            self._meet(timeline.take(), wait())
        if begins < self._met_at + 3:
            return False
        if self._next is None:
            agreed = self._answer(self._pending.pop())
            self._next = self._met_at + 2 + max(1, min(agreed, _LONGEST))
            self._samples_next = agreed <= _LONGEST
        if begins < self._next:
            return False
        self._met_at, self._next = begins, None
        return self._samples_next

    def tables(self) -> list[tuple[str, pa.Table]]:
        """What was heard since the last call; nothing on ranks that do not write."""
        tables, self._tables = self._tables, []
        return tables

    def untold(self) -> list[Step]:
        """Steps of which no meeting was held, to be written as this rank knows them: figures and events."""
        steps, self._untold = self._untold, []
        return [replace(step, samples=[], norms={}) for step in steps] if self.rank == 0 else []

    def close(self, steps: list[Step], *, failed: bool) -> None:
        """Hold the last meeting.

        Args:
            steps: The steps that were not told of.
            failed: Whether training ended by an exception: the others may not come, and are not waited for.
        """
        if failed or self._exchange is None:
            self._untold += steps
            self._meetings.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join(_GRACE)
            self.leave()
        else:
            self._meet(steps, 1)
            self._meet([], 1)  # what can be said only now that the last structure is known
            self._meetings.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(2 * PATIENCE)

    def leave(self) -> None:
        """Tell nothing more; the others learn of it."""
        if self._exchange is not None:
            self._exchange.closed = True
            self._exchange = None
        self._meetings.put(None)

    def _meet(self, steps: list[Step], wait: int) -> None:
        agreed: Future[int] = Future()
        self._pending = [one for one in self._pending if not one.done()] if self._every else []
        if len(self._pending) >= _MOST_MEETINGS:
            self._answer(self._pending.pop(0))
        self._pending.append(agreed)
        self._meetings.put(_Meeting(steps, wait, agreed))

    @staticmethod
    def _answer(agreed: Future[int]) -> int:
        waited = 0.0
        while waited < PATIENCE:  # in pieces: what passes while the process is stopped counts as one
            with suppress(FutureTimeoutError):
                return agreed.result(_PIECE)
            waited += _PIECE
        raise ExchangeError(no_answer(PATIENCE))

    def _meet_forever(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        while (meeting := self._meetings.get()) is not None:
            began = thread_time()
            try:
                if exchange.closed:
                    raise ExchangeError("this rank has left")
                agreed = self._hold(exchange, meeting)
            except Exception as error:
                exchange.close()
                self._untold += meeting.steps
                meeting.agreed.set_exception(error)
                if self._exchange is not None:
                    self._failed(error)
            else:
                meeting.agreed.set_result(agreed)
            self._spent(thread_time() - began)
        exchange.close()

    def _hold(self, exchange: Exchange, meeting: _Meeting) -> int:
        """Hold a meeting; the longest wait of all ranks."""
        counted, known = self._merger.counted(self.rank)
        message = self._speaker.message(meeting.steps, meeting.wait, counted, known)
        messages = [decode(one) for one in exchange.gather(encode(message))]
        self._merger.hear(messages)
        if self.rank == 0:
            self._tables += self._merger.tables(messages)
        return max(message.wait for message in messages)
