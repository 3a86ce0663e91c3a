"""The gradient that this rank's own part of the batch gave, before the ranks' gradients are reduced to one.

A hook on a parameter is called with the gradient of one backward pass, before it is
added to what is there, and so before ``DistributedDataParallel`` reduces it. After
the reduction all ranks hold the same, and nobody can tell whose was not a number.
The parameters of ``fully_shard`` are shards; what modules compute with, and what gets
the gradient of this rank, are whole parameters that stand in for them while the
module runs, so there hooks are put on as modules begin to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenflow.watch.moments import Page, Rows
from evenflow.watch.ranks.placement import local, piece_of

if TYPE_CHECKING:
    from evenflow.watch.inventory import Inventory

_NONFINITE = 4
"""Column of a page of moments that counts entries that are not finite."""


@final
class LocalBackward:
    """Gradients of one backward pass, in the order in which they came.

    Attributes:
        names: The parameters that got one.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._page = Page()

    def put(self, name: str, gradient: Tensor) -> None:
        """Take a gradient's moments."""
        self._page.put(len(self.names), gradient)
        self.names.append(name)

    def rows(self) -> Rows:
        """Moments of the gradients [parameters, 5]."""
        return self._page.read(len(self.names))

    def first_bad(self) -> str:
        """The parameter that first got an entry that is not finite."""
        return self.names[int((self.rows()[:, _NONFINITE] > 0).argmax())]


@final
class LocalGradients:
    """Looks at the gradients of one optimizer's parameters before they are reduced.

    Args:
        timed: Wraps every hook: measures its time and catches its failures.
    """

    def __init__(self, timed: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        self._timed = timed
        self._handles: list[RemovableHandle] = []
        self._passes: list[LocalBackward] = []
        self._in_backward = False
        self._hooked: set[int] = set()

    def attach(self, models: Mapping[str, Inventory], moved: Set[int]) -> None:
        """Put hooks on parameters.

        Args:
            models: Prefix → model.
            moved: Identities of the parameters to look at.
        """
        for prefix, inventory in models.items():
            for owned in inventory.parameters:
                parameter = owned.parameter
                if id(parameter) in moved and parameter.requires_grad and parameter.is_leaf:
                    hook = self._timed(self._arrived(f"{prefix}.{owned.name}" if prefix else owned.name))
                    self._handles.append(parameter.register_hook(hook))
            for path, module in inventory.modules:
                own = [one for one in module._parameters.values() if id(one) in moved]
                if any(piece_of(one).pieces > 1 for one in own if one is not None):
                    name = ".".join(filter(None, [prefix, path]))
                    self._handles.append(module.register_forward_pre_hook(self._timed(self._enterer(name))))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes = []
        self._hooked.clear()

    def take(self) -> list[LocalBackward]:
        """The backward passes since the last call."""
        passes, self._passes = self._passes, []
        return passes

    def _enterer(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            for name, parameter in module._parameters.items():
                if type(parameter) is not nn.Parameter or id(parameter) in self._hooked:
                    continue
                if parameter.requires_grad:
                    self._hooked.add(id(parameter))
                    arrived = self._timed(self._arrived(f"{path}.{name}" if path else name))
                    self._handles.append(parameter.register_hook(arrived))

        return hook

    def _backward_ended(self) -> None:
        self._in_backward = False

    def _arrived(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if not self._in_backward:
                self._in_backward = True
                engine: Any = torch.autograd.Variable._execution_engine
                engine.queue_callback(self._backward_ended)
                self._passes.append(LocalBackward())
            if self._passes:  # else hooks came off in the middle of it
                self._passes[-1].put(name, local(gradient))

        return hook
