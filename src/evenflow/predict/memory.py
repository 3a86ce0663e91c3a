"""Which field lies where in memory.

A field belongs to a place (storage, offset, shape, strides) at a time. A place
whose memory was written through another view gets its field derived anew.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from evenflow.predict.fields import Field, Leaf
from evenflow.predict.rules import RULES
from evenflow.predict.rules.registry import Context, NoRuleError
from evenflow.predict.table import constant

_Place: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Offset, shape and strides within a storage."""
_UNKNOWN = object()


@dataclass(slots=True)
class _Storage:
    """What one storage holds: fields by place, with the time at which they were written.

    It is kept, so that no other gets its address. The tensors are not: autograd keeps a
    gradient that nobody else holds, and copies any other.
    """

    storage: torch.UntypedStorage
    time: int = 0
    latest: _Place | None = None
    fields: dict[_Place, tuple[int, Any]] = field(default_factory=dict)
    unwritten: bool = False


@final
class Memory:
    """The fields of all tensors that an interpretation has met.

    Args:
        context: What rules share; views are derived by rules.

    Attributes:
        parts_are_zero: Whether new memory that is written part by part counts as zero
            before: true of what a model does with activations, not of parameters.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._storages: dict[int, _Storage] = {}
        self._real: dict[int, tuple[Tensor, Leaf]] = {}
        self._equal: dict[tuple[torch.Size, torch.dtype, bytes], Leaf] = {}
        self.parts_are_zero = False

    def note_unwritten(self, tensor: Tensor) -> None:
        """Say that a tensor is new memory that nobody wrote to yet."""
        self._storage_of(tensor).unwritten = True

    def _storage_of(self, tensor: Tensor) -> _Storage:
        storage = tensor.untyped_storage()
        found = self._storages.get(storage._cdata)
        if found is None:
            found = self._storages[storage._cdata] = _Storage(storage)
        return found

    def read(self, tensor: Tensor) -> Field | None:
        """The field of a tensor; None if it is not known."""
        if tensor.numel() == 0:
            return Leaf(None, torch.empty(tensor.shape, dtype=tensor.dtype))
        if not tensor.is_meta:
            known = self._real.get(id(tensor))
            if known is None:
                known = self._real[id(tensor)] = (tensor, self.known(tensor.detach().clone()))
            return known[1]
        memory = self._storages.get(tensor.untyped_storage()._cdata)
        if memory is None:
            return None
        place = _place(tensor)
        time, found = memory.fields.get(place, (-1, _UNKNOWN))
        if time < memory.time:
            found = self._derived(memory, place, found)
            memory.fields[place] = (memory.time, found)
        return None if found is _UNKNOWN else found

    def known(self, values: Tensor) -> Leaf:
        """A tensor with entries; random ones (an input, and the target that is a view of it) by content."""
        if not values.is_floating_point() or values.numel() < 2 or values.device.type != "cpu":
            return Leaf(None, values)
        content = hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).digest()
        return self._equal.setdefault((values.shape, values.dtype, content), Leaf(None, values))

    def put(self, tensor: Tensor, value: Field | None) -> None:
        """Say what a tensor holds from now on."""
        memory = self._storage_of(tensor)
        memory.fields[_place(tensor)] = (memory.time, _UNKNOWN if value is None else value)

    def write(self, tensor: Tensor, value: Field | None) -> None:
        """As :meth:`set_field`, for memory that other views may share."""
        memory = self._storage_of(tensor)
        base = tensor._base if tensor._is_view() else None
        whole: Field | None = None
        if base is not None and base.numel() != tensor.numel():
            whole = self._patched(base, tensor, value)
        memory.time += 1
        memory.latest = (
            _place(tensor)
            if (whole is None and base is None) or base is None or base.numel() == tensor.numel()
            else _place(base)
        )
        written = _place(tensor)
        for place, (time, found) in memory.fields.items():
            if not _overlap(place, written):
                memory.fields[place] = (
                    memory.time,
                    found if time == memory.time - 1 else self._derived(memory, place, found),
                )
        if memory.latest != written:
            memory.fields[memory.latest] = (memory.time, _UNKNOWN if whole is None else whole)
        self.put(tensor, value)

    def _patched(self, base: Tensor, part: Tensor, value: Field | None) -> Field | None:
        """The field of a tensor of which a part was overwritten."""
        old = self.read(base)
        if old is None and base.is_floating_point() and self._storage_of(base).unwritten:
            if self.parts_are_zero:
                old = Leaf(constant(base.shape, 0.0))
            elif isinstance(value, Leaf) and value.values is not None:
                old = Leaf(None, torch.full(base.shape, math.nan, dtype=base.dtype))
        if old is None or value is None:
            return None
        if (
            isinstance(old, Leaf)
            and isinstance(value, Leaf)
            and old.values is not None
            and value.values is not None
        ):
            offset = part.storage_offset() - base.storage_offset()
            strides = list(part.stride())
            if base.is_contiguous():
                return Leaf(
                    None,
                    old.values.contiguous().as_strided_scatter(value.values, part.shape, strides, offset),
                )
        patched: Field = RULES["<patch>"](self._context, base, old, value, part)
        return patched

    def _derived(self, memory: _Storage, place: _Place, stale: Any) -> Any:
        """What a place holds whose memory was written through another view."""
        latest = memory.latest
        if latest is None or (stale is _UNKNOWN and latest == place):
            return _UNKNOWN
        _, value = memory.fields[latest]
        if value is _UNKNOWN:
            return _UNKNOWN
        _, shape, strides = place
        _, whole, steps = latest
        if math.prod(shape) == math.prod(whole):
            order = sorted(range(len(shape)), key=lambda d: -strides[d])
            source = sorted(range(len(whole)), key=lambda d: -steps[d])
            value = RULES["permute"](self._context, None, value, source)
            value = RULES["view"](self._context, None, value, [shape[d] for d in order])
            return RULES["permute"](self._context, None, value, [order.index(d) for d in range(len(shape))])
        try:
            return RULES["<part>"](self._context, value, latest, place)
        except NoRuleError:
            return _UNKNOWN


def _place(tensor: Tensor) -> _Place:
    shape, strides = tensor.shape, tensor.stride()
    if 1 in shape:
        strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    return tensor.storage_offset(), shape, strides  # type: ignore[return-value]


def _overlap(first: _Place, second: _Place) -> bool:
    """Whether two places share an entry; True where that is hard to tell."""
    (start_1, shape_1, strides_1), (start_2, _, strides_2) = sorted((first, second), key=lambda p: p[0])
    span = sum((n - 1) * s for n, s in zip(shape_1, strides_1, strict=True))
    if start_1 + span < start_2:
        return False
    if strides_1 != strides_2:
        return True
    distance = start_2 - start_1
    for stride, n in sorted(zip(strides_1, shape_1, strict=True), reverse=True):
        if stride:
            steps, distance = divmod(distance, stride)
            if steps >= n:
                return False
    return distance == 0
