"""What went through the doors of modules, and who is to blame for a bad number there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from evenflow.flow import LOSS_PATH
from evenflow.watch.finite import Flag, bad, is_bad
from evenflow.watch.recorder.culprit import Culprit, Direction, Witness

Place: TypeAlias = tuple[str, int, bool]
"""A door, the same in every step: path of the module, number of its call, whether one enters."""


class Listener(Protocol):
    """Looks at the gradients of values."""

    @property
    def complete(self) -> bool:
        """Whether this step was seen from its first pass on."""

    def arrives(self, value: Value, gradient: Tensor) -> None:
        """The gradient of a value has come together."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        path: Path of the module, its model's prefix included.
        number: Which of its calls within the pass.
        caller: The call that made this one; None for the outermost.
        micro_batch: Which outermost call of the step it belongs to.
        began: Number that autograd was to give to the next node when it began.
        leaf: Whether the module has no children.
        inputs: The values that entered, by their graph node and its output, while its lower end is searched.
        sent: Whether a gradient that it alone sent to them was bad; None if that was not seen.
    """

    path: str
    number: int
    caller: Call | None
    micro_batch: int
    began: int
    leaf: bool
    inputs: tuple[int, ...] = ()
    sent: Flag | None = None

    def inside(self, other: Call) -> bool:
        """Whether this call is (indirectly) made by another."""
        call = self.caller
        while call is not None:
            if call is other:
                return True
            call = call.caller
        return False


@dataclass(slots=True, eq=False)
class Value:
    """A tensor with a gradient that went through a door: who returned it, who took it.

    What calls have sent to it is kept until it is known whether it matters.

    Attributes:
        listener: Is told the gradient that came together there; the value itself is the hook.
        returned_by: Calls that returned it.
        taken_by: Calls that it entered.
        sent: What calls sent back to it.
        flag: Whether it is not finite.
        version: Of what the flag is about; −1 if it was not read.
    """

    listener: Listener
    returned_by: tuple[Call, ...] = ()
    taken_by: tuple[Call, ...] = ()
    sent: tuple[tuple[Call, Tensor], ...] = ()
    flag: Flag = False
    version: int = -1

    def __call__(self, gradient: Tensor) -> None:
        """Its gradient has arrived."""
        self.listener.arrives(self, gradient)

    def judge(self) -> None:
        """Look at what calls have sent."""
        for call, gradient in self.sent:
            flag = bad(gradient)
            if isinstance(flag, Tensor) and isinstance(call.sent, Tensor):
                flag = call.sent + flag
            if call.sent is not True:
                call.sent = flag or call.sent if not isinstance(flag, Tensor) else flag
        self.sent = ()


@dataclass(slots=True, eq=False)
class Sender:
    """What a call sends back to a value that entered it; a hook on the graph node at the call's lower end.

    Attributes:
        call: The call.
        value: The value.
        place: Of the value among the inputs of the node.
    """

    call: Call
    value: Value
    place: int

    def __call__(self, sent: Sequence[Tensor | None], received: Sequence[Tensor | None]) -> None:
        """The node has run. Not timed, for that would take longer; and nothing in it can fail."""
        gradient = sent[self.place]
        if gradient is not None and self.value.listener.complete:
            self.value.sent += ((self.call, gradient),)


class Door(NamedTuple):
    """A tensor that went through a door on the way forward."""

    call: Call
    entered: bool
    flag: Flag

    @property
    def place(self) -> Place:
        """The same in every step."""
        return self.call.path, self.call.number, self.entered


def blame_forward(door: Door) -> Culprit:
    """Who made the bad number at a door: the module it left, or the code around the one it entered."""
    call = door.call
    if not door.entered:
        return Culprit(Direction.FORWARD, call.path, call.micro_batch, Witness.IN_SITU)
    if call.caller is None:
        return Culprit(Direction.BATCH, call.path, call.micro_batch, Witness.IN_SITU)
    return Culprit(Direction.FORWARD, call.caller.path, call.micro_batch, Witness.IN_SITU)


def blame_backward(value: Value) -> Culprit:
    """Among those who took the value, the one that sent a bad gradient back; else the code around them."""
    around = [call for call in value.taken_by if any(other.inside(call) for other in value.taken_by)]
    takers = [call for call in value.taken_by if call not in around]
    guilty = next((call for call in takers if call.sent is not None and is_bad(call.sent)), None)
    if guilty is None:
        guilty = next((call for call in takers if call.sent is None), None)
    if guilty is None and around:
        guilty = around[-1]
    if guilty is None:
        known = value.returned_by[-1] if value.returned_by else takers[0]
        guilty = known.caller
        if guilty is None:
            return Culprit(Direction.LOSS, LOSS_PATH, known.micro_batch, Witness.IN_SITU)
    return Culprit(Direction.BACKWARD, guilty.path, guilty.micro_batch, Witness.IN_SITU)
