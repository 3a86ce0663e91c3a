"""An optimizer that was built before the patch: it takes in new parameters, or becomes another one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer


def adopt(optimizer: Optimizer, added: Mapping[str, nn.Parameter]) -> Optimizer:
    """The optimizer, with those of the parameters that it did not have.

    Vectors and scalars (norm scales, biases, gates) join the group with the least
    weight decay, matrices the group with the most parameters.

    Args:
        optimizer: Changed in place.
        added: Parameters by name.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in added.values():
        if id(parameter) in known or not parameter.requires_grad:
            continue
        groups = optimizer.param_groups
        if parameter.ndim <= 1:
            home = min(groups, key=lambda group: float(group.get("weight_decay", 0.0) or 0.0))
        else:
            home = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))
        home["params"].append(parameter)
        known.add(id(parameter))
    return optimizer


def become(optimizer: Optimizer, other: Optimizer) -> None:
    """Let whoever holds the optimizer go on with the other one, which is used up by it."""
    optimizer.__class__ = other.__class__
    optimizer.__dict__ = other.__dict__
