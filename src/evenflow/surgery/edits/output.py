"""Repair what a model ends with and what its loss expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery import activations
from evenflow.surgery.edit import Edit, check_choice
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.ambient import LossCalls
from evenflow.surgery.pieces.calls import swap_calls
from evenflow.surgery.pieces.losses import RememberLogits, on_logits, set_loss
from evenflow.surgery.scene import Scene
from evenflow.surgery.script import Ref, Set, Step, call, step


@final
@dataclass(frozen=True)
class RemoveOutputActivation(Edit):
    """Let the model end with its last layer: no softmax, sigmoid or other activation behind it.

    Who reads the output then gets logits. Where other code needs probabilities,
    :class:`UseLogits` mends the loss alone.

    Attributes:
        path: Of the activation module, or of the module whose forward calls it; None: looked for.
    """

    name: ClassVar[str] = "remove_output_activation"
    path: str | None = None

    def describe(self) -> str:
        """See :class:`Edit`."""
        return "the output activation is removed"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield from _at_the_output(scene, self.name, self.path, call(nn.Identity))


@final
@dataclass(frozen=True)
class SetOutputActivation(Edit):
    """Another activation at the end of the model; a softmax over one unit is always 1, a sigmoid is not.

    Attributes:
        to: ``sigmoid``, or ``softmax`` over the last dimension.
        path: As in :class:`RemoveOutputActivation`.
    """

    name: ClassVar[str] = "set_output_activation"
    to: str
    path: str | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, ("sigmoid", "softmax"))

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the output activation is {self.to}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        other = call(nn.Sigmoid) if self.to == "sigmoid" else call(nn.Softmax, -1)
        yield from _at_the_output(scene, self.name, self.path, other)


def _at_the_output(scene: Scene, name: str, path: str | None, other: Any) -> Iterator[Step]:
    """What the model ends with, or what is at ``path``, becomes another module.

    Raises:
        PatchError: There is no activation there.
    """
    found = sorted(activations.output_of(scene))
    if path is not None:
        found = [one for one in found if one[0] == path] or [
            (place.path, "")
            for place in scene.places()
            if place.path == path
            and (activations.name_of(place.module) or isinstance(place.module, (nn.Softmax, nn.LogSoftmax)))
        ]
    if not found:
        where = "at its end" if path is None else f"at {path!r}"
        raise PatchError(
            f"{name} does not fit this model: no activation can be seen {where}. "
            "Expected a module such as nn.Softmax last in a chain, or a forward that ends with "
            "return softmax(…). "
            "Name the activation module's path."
        )
    for one, called in found:
        if called:
            yield step(call(swap_calls, scene.ref(one), called, other))
        else:
            yield step(Set(scene.ref(one), other), source=scene.line(one))


@final
@dataclass(frozen=True)
class UseLogits(Edit):
    """Compute cross-entropies from logits wherever the loss is given probabilities.

    The model stays: it gives probabilities to everyone else. While the loss runs,
    the output of a sigmoid or softmax remembers its input, and

    * ``binary_cross_entropy`` of a sigmoid takes it, as ``…_with_logits``: the same value, no saturation;
    * ``cross_entropy`` of a softmax or sigmoid takes it: the second softmax is gone;
    * ``nll_loss`` of a softmax (without log) becomes ``cross_entropy``;
    * ``log(p)`` and ``log(1 - p)``, as in losses written by hand, are computed from the logit, also
      behind ``clamp`` and ``p + 1e-7``.

    Other losses stay as they are: see :class:`SetLoss`.
    """

    name: ClassVar[str] = "use_logits"

    def describe(self) -> str:
        """See :class:`Edit`."""
        return "cross-entropies are computed from logits"

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("loss"), call(on_logits, Ref("loss"))))

    def on_calls(self) -> AbstractContextManager[Any]:
        """See :class:`Edit`."""
        return RememberLogits()


@final
@dataclass(frozen=True)
class SetLoss(Edit):
    """Another loss, for programs whose batches are pairs (inputs, targets).

    Attributes:
        to: ``cross_entropy``, ``bce_with_logits`` or ``mse``. The first two take the model's
            logits, also where it ends with sigmoid or softmax.
    """

    name: ClassVar[str] = "set_loss"
    to: str

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, ("cross_entropy", "bce_with_logits", "mse"))

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the loss is {self.to}"

    def loss_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(Ref("loss"), call(set_loss, self.to)))

    def on_calls(self) -> AbstractContextManager[Any]:
        """See :class:`Edit`."""
        return LossCalls(self.to)
