"""What may be given to :func:`~evenflow.watch.watch`: models and optimizers by name, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from evenflow.watch.errors import WatchError
from evenflow.watch.governor import Budget

Models: TypeAlias = nn.Module | Mapping[str, nn.Module]
Optimizers: TypeAlias = (
    torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | Mapping[str, torch.optim.Optimizer]
)


_FLAT = "FullyShardedDataParallel"


def models_by_role(model: Models) -> dict[str, nn.Module]:
    """Role → model; a single model has the empty role.

    For a compiled one stands what was compiled, and for ``DistributedDataParallel`` what it wraps,
    so that parts have the same names in every training.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    return {role: _unwrapped(one) for role, one in models.items()}


def _unwrapped(model: Any) -> Any:
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, DistributedDataParallel) else inner
        if inner is model:
            return model
        model = inner


def optimizers_by_name(optimizer: Optimizers) -> dict[str, torch.optim.Optimizer]:
    """Name → optimizer: as given, else their numbers; a single one has the empty name."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return {"": optimizer}
    if isinstance(optimizer, Mapping):
        return dict(optimizer)
    given = list(optimizer)
    return {"": given[0]} if len(given) == 1 else {str(i): one for i, one in enumerate(given)}


def check(
    models: Mapping[str, Any], optimizers: Mapping[str, Any], budget: Budget, modules: str | None
) -> None:
    """Raise WatchError if training cannot be watched with these."""
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise WatchError(
                f"watch got a {type(model).__name__} for the model{f' {name!r}' if name else ''}; "
                "expected an nn.Module, or a dict of them."
            )
        flat = [path for path, one in model.named_modules() if type(one).__name__ == _FLAT]
        if flat:
            raise WatchError(
                f"The model{f' {name!r}' if name else ''} has a {_FLAT} (FSDP1) at {flat[0]!r}, "
                "of which no rank can tell which part of which parameter it holds. Shard it with "
                "torch.distributed.fsdp.fully_shard (FSDP2), which can be watched."
            )
    for name, one in optimizers.items():
        if not isinstance(one, torch.optim.Optimizer):
            raise WatchError(
                f"watch got a {type(one).__name__} for the optimizer{f' {name!r}' if name else ''}; "
                "expected a torch.optim.Optimizer, or several."
            )
    if not optimizers:
        raise WatchError("watch got no optimizer; steps are found from it. Give at least one.")
    if isinstance(budget, float | int) and not 0.0 < budget < 1.0:
        raise WatchError(
            f"watch got budget={budget}; expected a share of the training time, such as 0.01 for 1 %, "
            "or None for everything at every step."
        )
    if modules is not None:
        try:
            re.compile(modules)
        except re.error as error:
            raise WatchError(
                f"watch got modules={modules!r}, which is no regular expression: {error}."
            ) from error


def unmoved(models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> str | None:
    """What to tell if an optimizer holds no parameter of any model; None if each holds some."""
    held = {id(parameter) for model in models.values() for parameter in model.parameters()}
    strangers = [
        name
        for name, one in optimizers.items()
        if not any(id(parameter) in held for group in one.param_groups for parameter in group["params"])
    ]
    if not strangers:
        return None
    names = " " + ", ".join(map(repr, strangers)) if any(strangers) else ""
    verb = "optimizers{} hold" if len(strangers) > 1 else "optimizer{} holds"
    return (
        f"The {verb.format(names)} no parameter of the model: no step of it changes anything there. "
        "Make it from model.parameters() after the model has got its final parameters."
    )
