"""Whether tensors are finite: asked of what has been read already, before it is read again.

The figures of a sampled step and the flight recorder's sentinels look at the same
tensors, one right after the other. A row of moments says how many entries are not
finite, so whoever reads a tensor notes it here, and who comes later need not read it.

Of what passes by, the two latest tensors are remembered: what a module was given and
what it returned. They are kept alive as long, so that no other tensor can be taken for
them. The gradients of parameters are remembered until the step ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

from torch import Tensor

from evenflow.watch.finite import Flag, bad

Listener: TypeAlias = Callable[[Tensor], None]
Version: TypeAlias = tuple[int, int]
_Noted: TypeAlias = tuple[Tensor, int, Flag]


class _Listeners(list[Listener]):
    """All of them as one."""

    __slots__ = ()

    def __call__(self, gradient: Tensor) -> None:
        for listener in self:
            listener(gradient)


@final
class Readings:
    """What was found of the tensors that were read last."""

    def __init__(self) -> None:
        self._latest: _Noted | None = None
        self._before: _Noted | None = None
        self._finite_gradients: set[Version] = set()
        self._expected: tuple[Tensor, int, _Listeners] | None = None

    def note(self, tensor: Tensor, flag: Flag | None) -> None:
        """A tensor was read.

        Args:
            tensor: Which.
            flag: Whether an entry is not finite; None if that is not known.
        """
        if flag is not None:
            self._before, self._latest = self._latest, (tensor, tensor._version, flag)

    def bad(self, tensor: Tensor) -> Flag:
        """Whether an entry is NaN or infinite; the tensor is read if it was not one of the last two."""
        for noted in (self._latest, self._before):
            if noted is not None and noted[0] is tensor and noted[1] == tensor._version:
                return noted[2]
        flag = bad(tensor)
        self.note(tensor, flag)
        return flag

    def finite(self, tensor: Tensor) -> bool:
        """Whether the tensor that was read last is this one, and finite."""
        noted = self._latest
        return noted is not None and noted[0] is tensor and noted[2] is False and noted[1] == tensor._version

    def note_gradient(self, gradient: Tensor, flag: Flag | None) -> None:
        """The gradient of a parameter was read."""
        if flag is False:
            self._finite_gradients.add(version_of(gradient))
        else:
            self._finite_gradients.discard(version_of(gradient))

    def finite_gradient(self, gradient: Tensor) -> bool:
        """Whether the gradient of a parameter is known to be finite."""
        return version_of(gradient) in self._finite_gradients

    def expect_gradient(self, tensor: Tensor, listener: Listener) -> None:
        """Have ``listener`` told the gradient of ``tensor``, in front of all that :meth:`on_gradient` adds.

        One hook serves all, for a hook takes longer than most of what is done in it.
        """
        listeners = _Listeners((listener,))
        self._expected = tensor, tensor._version, listeners
        tensor.register_hook(listeners)

    def on_gradient(self, tensor: Tensor, listener: Listener) -> None:
        """Have ``listener`` told the gradient of ``tensor``, after who expects it already."""
        known = self._expected
        if known is not None and known[0] is tensor and known[1] == tensor._version:
            known[2].append(listener)
        else:
            tensor.register_hook(listener)

    def clear(self) -> None:
        """Let go of everything: the step is over."""
        self._latest = self._before = self._expected = None
        self._finite_gradients.clear()


def version_of(tensor: Tensor) -> Version:
    """Another one for every change of a tensor that autograd knows of."""
    return id(tensor), tensor._version
