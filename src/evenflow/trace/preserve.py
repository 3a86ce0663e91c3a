"""Leave no trace: a model, its inputs and all random state as they were.

``preserved`` puts back, also when the model raises,

* parameters, buffers and input tensors, bit by bit, which a forward pass may
  change in place. Buffers (BatchNorm's running statistics) are copied at once;
  the others, which may be as large as all memory, only before an op that
  declares to write to them (a ``max_norm`` embedding) is run;
* every attribute that a module rebound (a stateful net's hidden state);
* train/eval mode, ``.grad`` (the same tensor objects) and gradient hooks of
  optimizers that step inside backward;
* the random state of Python, NumPy and PyTorch on all devices in use.

Not covered: changes inside the module's own Python containers (an appended
list), anything outside the model, and a parameter written to during backward,
which is told (:meth:`Preserver.lost`).
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@final
class Preserver:
    """Keeps what must be put back.

    Args:
        parameters: The model's, by name.
        buffers: The model's.
        inputs: The tensors that it is called with.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], buffers: Sequence[Tensor], inputs: Iterable[Tensor]
    ) -> None:
        self._kept: dict[int, _Contents] = {}
        named = [*parameters.items(), *(("an input", tensor) for tensor in inputs)]
        self._named = {id(tensor): (name, tensor, tensor._version) for name, tensor in named}
        self._by_storage: dict[int, list[Tensor]] = {}
        for tensor in unique([*(tensor for _, tensor in named), *buffers]):
            if tensor.layout is torch.strided and not tensor.is_meta:
                self._by_storage.setdefault(_storage(tensor), []).append(tensor)
        for buffer in buffers:
            self._keep(buffer)

    def before_write(self, target: Tensor) -> None:
        """An op is about to write to ``target``: copy what shares its memory."""
        for tensor in self._by_storage.get(_storage(target), ()):
            self._keep(tensor)

    def restore(self) -> None:
        """Put back the contents of all that was kept."""
        for content in self._kept.values():
            content.restore()

    def lost(self) -> list[str]:
        """Names of tensors that were written to without a copy being kept."""
        return [
            name
            for key, (name, tensor, version) in self._named.items()
            if key not in self._kept and tensor._version != version
        ]

    def _keep(self, tensor: Tensor) -> None:
        if id(tensor) not in self._kept and not tensor.is_meta:
            self._kept[id(tensor)] = _Contents(tensor, tensor.detach().to("cpu", copy=True))


@contextlib.contextmanager
def preserved(model: nn.Module, inputs: Iterable[Tensor] = ()) -> Iterator[Preserver]:
    """Undo, on leaving, all that happens to ``model`` and ``inputs`` inside."""
    inputs = unique(inputs)
    parameters, buffers = dict(model.named_parameters()), list(model.buffers())
    preserver = Preserver(parameters, buffers, inputs)
    attributes = [
        _Attributes.of(module)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # its attributes live in compiled code
    ]
    tensors = [*parameters.values(), *buffers, *inputs]
    with _random_state(tensors), gradients_aside(parameters.values()):
        try:
            yield preserver
        finally:
            for saved in attributes:
                saved.restore()
            preserver.restore()


@contextlib.contextmanager
def gradients_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Hide ``.grad`` and the hooks that act once it is complete; put both back on leaving."""
    kept = [(tensor, tensor.grad, _take_hooks(tensor)) for tensor in unique(tensors) if tensor.is_leaf]
    for tensor, _, _ in kept:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, gradient, hooks in kept:
            tensor.grad = gradient
            if hooks:
                tensor._post_accumulate_grad_hooks.update(hooks)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is garbage before a pass is over, and looking for it takes time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor object once, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def _take_hooks(tensor: Tensor) -> dict[int, Any]:
    """Empty the dict of post-accumulate hooks in place, for PyTorch holds on to that very dict."""
    hooks = getattr(tensor, "_post_accumulate_grad_hooks", None)
    if not hooks:
        return {}
    taken = dict(hooks)
    hooks.clear()
    return taken


@dataclass(frozen=True, slots=True)
class _Contents:
    """A tensor and a copy of what it held, in main memory."""

    tensor: Tensor
    copy: Tensor

    def restore(self) -> None:
        if not _same_bits(self.tensor.detach(), self.copy):
            self.tensor.data.copy_(self.copy)


def _storage(tensor: Tensor) -> int:
    """What tells apart the memory of two tensors."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _same_bits(tensor: Tensor, copy: Tensor) -> bool:
    """Bitwise equality, in which NaN equals NaN and +0 differs from −0."""
    if tensor.shape != copy.shape or tensor.dtype != copy.dtype:
        return False
    if tensor.layout is not torch.strided or not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.equal(tensor.cpu(), copy)
    if tensor.is_complex():
        tensor, copy = torch.view_as_real(tensor), torch.view_as_real(copy)
    integer = _INTEGERS[tensor.element_size()]
    return torch.equal(tensor.cpu().view(integer), copy.view(integer))


@dataclass(frozen=True, slots=True)
class _Attributes:
    """The objects that a module's attributes pointed to."""

    module: nn.Module
    attributes: dict[str, Any]
    parameters: dict[str, Any]
    buffers: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _Attributes:
        return cls(module, dict(module.__dict__), dict(module._parameters), dict(module._buffers))

    def restore(self) -> None:
        self.module.__dict__.clear()
        self.module.__dict__.update(self.attributes)
        for now, before in (
            (self.module._parameters, self.parameters),
            (self.module._buffers, self.buffers),
        ):
            now.clear()
            now.update(before)


@contextlib.contextmanager
def _random_state(tensors: Iterable[Tensor]) -> Iterator[None]:
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the legacy state is the global one)
    with contextlib.ExitStack() as stack:
        for kind in {device.type for device in devices} or {"cuda"}:
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
