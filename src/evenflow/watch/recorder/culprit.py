"""What went wrong first, and how it was found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from evenflow.flow import LOSS_PATH


class Direction(StrEnum):
    """Where in a step a number stopped being finite."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    BATCH = "batch"
    WEIGHTS = "weights"


class Witness(StrEnum):
    """Who says so, the most reliable first."""

    IN_SITU = "in_situ"
    REPLAY = "replay"
    GRADIENTS = "gradients"
    TRACEBACK = "traceback"


@dataclass(frozen=True, slots=True)
class Culprit:
    """The place that made the first bad number.

    Attributes:
        direction: On the way forward, in the loss, on the way back; or the batch
            or the weights were bad to begin with.
        module: Path of the innermost module that ran the op; ``<loss>`` outside all modules.
        micro_batch: Which pass of the step it was, from 0.
        witness: Who says so.
        op: PyTorch's name of the op; None if only the module is known.
        source: The user's line, ``"file.py:12"``; None if not known.
        others: Modules that it may have been just as well.
    """

    direction: Direction
    module: str
    micro_batch: int
    witness: Witness
    op: str | None = None
    source: str | None = None
    others: Sequence[str] = ()

    def sentence(self) -> str:
        """What happened where, as one sentence without a full stop."""
        if self.direction is Direction.BATCH:
            return f"the batch that {_named(self.module)} was called with held NaN or infinity"
        if self.direction is Direction.WEIGHTS:
            return f"the parameters of {_named(self.module)} held NaN or infinity before the step"
        where = "the loss" if self.module == LOSS_PATH else _named(self.module)
        if self.op:
            where = f"{self.op} in {where}"
        if self.source:
            where += f" ({self.source})"
        way = "backward" if self.direction is Direction.BACKWARD else "forward"
        if self.direction is Direction.LOSS and self.witness is not Witness.REPLAY:
            return f"the first NaN or infinity was made by {where}"
        either = f" or {', '.join(_named(other) for other in self.others)}" if self.others else ""
        return f"the first NaN or infinity was made {way} by {where}{either}"


def _named(path: str) -> str:
    return path or "the model itself"
