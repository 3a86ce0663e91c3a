"""Which module call is running, and how its ops are named.

Forward hooks keep a stack of module calls. An op is named by the innermost call,
its own name, and how many ops of that name the call has run before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, final

from torch import nn
from torch.utils.hooks import RemovableHandle

from evenflow.flow import LOSS_PATH, ModuleCall


@cache
def plain_name(func: Any) -> str:
    """What PyTorch calls an op, without namespace and overload: ``aten::add_.Tensor`` → ``add_``."""
    name: str = func._schema.name
    return name.split("::")[1]


class CallObserver(Protocol):
    """Wants to know of module calls."""

    def entered(
        self, module: nn.Module, call: ModuleCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """The module is about to run."""

    def left(self, module: nn.Module, call: ModuleCall, output: Any) -> None:
        """The module has run."""


@dataclass(frozen=True, slots=True)
class OpName:
    """The name of one op: the module call, PyTorch's name, and its position among equals."""

    module: ModuleCall
    module_type: str
    op: str
    index: int


@dataclass(frozen=True, slots=True)
class CallState:
    """A moment in the sequence of calls, to return to."""

    stack: tuple[tuple[ModuleCall, str], ...]
    calls: Counter[str]
    indices: Counter[tuple[ModuleCall, str]]


@final
class CallStack:
    """Follows the module calls of one model through its hooks."""

    def __init__(self) -> None:
        self._stack: list[tuple[ModuleCall, str]] = []
        self._calls: Counter[str] = Counter()
        self._indices: Counter[tuple[ModuleCall, str]] = Counter()
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module, observer: CallObserver) -> None:
        """Put hooks on every module of ``model``."""
        for path, module in model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._enter(path, observer), with_kwargs=True, prepend=True),
                module.register_forward_hook(self._leave(observer), always_call=True),
            ]

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def name(self, op: str) -> OpName:
        """Name the op that runs now, and count it."""
        module, module_type = self._stack[-1] if self._stack else (ModuleCall(LOSS_PATH), "")
        index = self._indices[module, op]
        self._indices[module, op] = index + 1
        return OpName(module, module_type, op, index)

    def state(self) -> CallState:
        """This moment, to be given to :meth:`return_to`."""
        return CallState(tuple(self._stack), self._calls.copy(), self._indices.copy())

    def return_to(self, state: CallState) -> None:
        """Continue naming from an earlier moment, for code that is run a second time."""
        self._stack = list(state.stack)
        self._calls = state.calls.copy()
        self._indices = state.indices.copy()

    def _enter(self, path: str, observer: CallObserver) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            observer.entered(module, ModuleCall(path, self._calls[path]), args, kwargs)
            self._stack.append((ModuleCall(path, self._calls[path]), type(module).__name__))
            self._calls[path] += 1

        return hook

    def _leave(self, observer: CallObserver) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call, _ = self._stack.pop()
            observer.left(module, call, output)

        return hook
