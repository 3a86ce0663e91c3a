"""Faults put into training on purpose: one op of one step gives back one entry that is not finite.

A dispatch mode sees every op of a step, forwards and backwards, those inside the
autograd engine included. An op that makes floating-point numbers is a *site*. A
rehearsal lists the sites of one step, each with the module that truly runs it:
forwards the innermost module whose ``forward`` is on the stack, backwards the one
in whose forward the autograd node was made. In the training proper the entry in
the middle of one site's output then becomes NaN or infinite.

A *lasting* fault is there whenever that op is run in that step, so also when it is
run again; a *passing* one strikes once.

No sites: views, which make no numbers; additions on the way back, by which the
engine joins paths that meet (they belong to no module, though autograd calls them
the op's that came last); evenflow's own ops.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenflow.flow import LOSS_PATH

Key = tuple[object, ...]


@dataclass(frozen=True)
class Site:
    """An op of a step: what finds it again, and the module that truly runs it."""

    key: Key
    module: str

    @property
    def backward(self) -> bool:
        return self.key[0] == "backward"


class Injector(TorchDispatchMode):
    """Lists the sites of the steps that run inside it, or strikes one of them.

    Args:
        models: Prefix → model.
        target: The site to strike; None to list all.
        value: What to put there.
        lasting: Whether it strikes whenever the op is run.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        target: Site | None = None,
        value: float = math.nan,
        *,
        lasting: bool = False,
    ) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.strikes = 0
        self._target, self._value, self._lasting = target, value, lasting
        self._stack: list[str] = []
        self._passes: dict[Key, int] = {}
        self._pass = -1
        self._began = 0
        self._owners: dict[int, tuple[str, int, int]] = {}
        self._counts: Counter[Key] = Counter()
        self._handles = []
        for prefix, model in models.items():
            for path, module in model.named_modules():
                name = ".".join(filter(None, (prefix, path)))
                self._handles += [
                    module.register_forward_pre_hook(self._enterer(name), prepend=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enterer(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not self._stack:
                # Run again, a pass has the same input in the same memory.
                key = (name, args[0].data_ptr(), args[0].requires_grad)
                self._pass = self._passes.setdefault(key, len(self._passes))
                self._began = _next_number()
                self._counts.clear()
            self._stack.append(name)

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        site = self._site(func, args)
        output = func(*args, **(kwargs or {}))
        tensor = output[0] if isinstance(output, (tuple, list)) and output else output
        if site is None or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return output
        if tensor.numel() == 0:
            return output
        if self._target is None:
            self.sites.append(site)
        elif site == self._target and (self._lasting or not self.strikes):
            self.strikes += 1
            middle = torch.unravel_index(torch.tensor(tensor.numel() // 2), tensor.shape)
            tensor.detach()[middle] = self._value
        return output

    def _site(self, func: Any, args: Any) -> Site | None:
        if func.is_view or _evenflows_own():
            return None
        node: Any = torch._C._current_autograd_node()
        number = _next_number()
        if node is not None:
            if node._sequence_nr() not in self._owners or func is torch.ops.aten.add.Tensor:
                return None
            owner, one, place = self._owners[node._sequence_nr()]
            return self._numbered(
                "backward", owner, (node._sequence_nr(), str(func)), (one, place, str(func))
            )
        if not torch.is_grad_enabled():
            return None
        owner = self._stack[-1] if self._stack else LOSS_PATH
        self._owners.setdefault(number - 1, (owner, self._pass, number - 1 - self._began))
        if not self._stack and not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return None  # the next batch is made
        return self._numbered("forward", owner, (owner, str(func)), (self._pass, owner, str(func)))

    def _numbered(self, way: str, owner: str, among: Key, key: Key) -> Site:
        position = self._counts[way, *among]
        self._counts[way, *among] += 1
        return Site((way, *key, position), owner)


def _evenflows_own() -> bool:
    """Whether evenflow runs this op for itself: its code is nearer than that of a module or the engine."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename != __file__:
            if code.co_name in ("forward", "_engine_run_backward"):
                return False
            if "/src/evenflow/" in code.co_filename and code.co_name != "__torch_dispatch__":
                return True
        frame = frame.f_back
    return False


def _next_number() -> int:
    return torch._C._autograd._get_sequence_nr()
