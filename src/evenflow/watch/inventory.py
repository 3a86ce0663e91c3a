"""The modules and parameters of a model by name, walked again only when something came or went."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from evenflow.watch.ranks.placement import class_name


class Owned(NamedTuple):
    """A parameter: its full name in the model, and the class of the module that owns it."""

    name: str
    parameter: Tensor
    module_type: str


@final
class Inventory:
    """What a model consists of.

    Attributes:
        model: The model.
        modules: Path and module, each module once.
        parameters: All parameters, each once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._walk()

    def refresh(self) -> bool:
        """Look whether modules or parameters came or went; if so, list them anew."""
        if self._seen == [_contents(module) for _, module in self.modules]:
            return False
        self._walk()
        return True

    def _walk(self) -> None:
        self.modules = list(self.model.named_modules())
        self._seen = [_contents(module) for _, module in self.modules]
        known: set[int] = set()
        self.parameters: list[Owned] = []
        for path, module in self.modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in known:
                    known.add(id(parameter))
                    full = f"{path}.{name}" if path else name
                    self.parameters.append(Owned(full, parameter, class_name(module)))


def _contents(module: nn.Module) -> tuple[int, ...]:
    """Identities of what a module holds directly. Those of a compiled one change with every look."""
    if isinstance(module, torch.jit.ScriptModule):
        return ()
    return (*map(id, module._parameters.values()), *map(id, module._modules.values()))
