"""From optimizers to the models whose parameters they move.

The model is the top-most module that owns a parameter, looked for among all
modules that are alive. Wrappers of data parallelism and compilation are looked
through. Where there are several, they and the optimizers get the names that the
script gave them.
"""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn


def moved(optimizers: Iterable[torch.optim.Optimizer]) -> set[int]:
    """Identities of all parameters that these optimizers move."""
    return {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}


def latest(made: Iterable[weakref.ref[torch.optim.Optimizer]]) -> list[torch.optim.Optimizer]:
    """The optimizers that are alive, and neither replaced nor wrapped by a later one."""
    alive = [one for reference in made if (one := reference()) is not None]
    return [one for index, one in enumerate(alive) if not moved([one]) <= moved(alive[index + 1 :])]


def owners(parameters: set[int]) -> list[nn.Module]:
    """The top-most modules that own these parameters, by identity; no two for the same."""
    alive = [value for value in gc.get_objects() if issubclass(type(value), nn.Module)]
    holding = {id(module): _owned(module, parameters) for module in alive}
    holders = [module for module in alive if holding[id(module)]]
    inner = {id(part) for module in holders for part in module.modules() if part is not module}
    top = sorted((m for m in holders if id(m) not in inner), key=lambda m: -len(holding[id(m)]))
    chosen: list[nn.Module] = []
    covered: set[int] = set()
    for module in top:
        if not holding[id(module)] <= covered:
            covered |= holding[id(module)]
            chosen.append(unwrapped(module))
    return chosen


def named_models(models: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Role → model: the empty role for one alone; else the script's names, or those of their classes."""
    if len(models) == 1:
        return {"": models[0]}
    names = [_variable(model) or _snake(type(model).__name__) for model in models]
    return dict(zip(_unique(names), models, strict=True))


def named_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], models: dict[str, nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    """Name → optimizer: empty for one alone; else the role of what it moves, or the script's name."""
    if len(optimizers) == 1:
        return {"": optimizers[0]}
    names = []
    for index, one in enumerate(optimizers):
        parameters = moved([one])
        roles = [role for role, model in models.items() if _owned(model, parameters)]
        alone = roles[0] if len(roles) == 1 else ""
        names.append(alone or _variable(one) or str(index))
    return dict(zip(_unique(names), optimizers, strict=True))


def _owned(module: nn.Module, parameters: set[int]) -> set[int]:
    try:
        return {id(p) for p in module.parameters()} & parameters
    except Exception:  # a module that was never initialised, or is being taken apart
        return set()


def unwrapped(module: nn.Module) -> nn.Module:
    """What data parallelism and compilation wrap."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _variable(value: Any) -> str | None:
    """The name that the script gave to a value."""
    names = vars(sys.modules["__main__"]).items()
    return next((name for name, other in names if other is value and not name.startswith("_")), None)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _unique(names: Sequence[str]) -> list[str]:
    """Later ones of equal names get a number."""
    return [
        name if names[:index].count(name) == 0 else f"{name}_{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
