"""The first batch of a program, before any training: one Flow for each role's loss."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from evenflow.flow import Flow, Role
from evenflow.measure.batch import measure_loss
from evenflow.program import Program, Training

_PARAMETER_ROLES = (Role.PARAMETER, Role.PARAMETER_GRADIENT)


def first_flows(program: Program, seed: int = 0) -> dict[str, Flow]:
    """The first batch of a program, measured before any training.

    Args:
        program: Whose first batch.
        seed: Of its weights and batches.

    Returns:
        A Flow for each role's loss; ``""`` if there is one only. What another
        role's parameters get from it is left out, for they do not move by it.

    Raises:
        LossError: A loss is no scalar or has no gradient.
        ModelError: A model or a loss raised.
    """
    with torch.random.fork_rng(devices=[]):
        training = program.start(seed)
        batch = training.first_batch()
        models = training.models
        whole = models[""] if "" in models else nn.ModuleDict(dict(models))
        flows = {}
        for role, loss in training.losses.items():
            flow = measure_loss(whole, partial(loss, training.model, batch), batch)
            flow.metadata["optimized"] = _optimized(whole, training)
            flows[role] = _of_role(flow, role)
    return flows


def _optimized(model: nn.Module, training: Training) -> list[str]:
    """Names of the parameters that some optimizer holds."""
    held = {
        id(parameter)
        for optimizer in training.optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [name for name, parameter in model.named_parameters() if id(parameter) in held]


def _of_role(flow: Flow, role: str) -> Flow:
    """The Flow without the parameters of other roles."""
    if not role:
        return flow
    own = [
        row for row in flow if row.site.role not in _PARAMETER_ROLES or row.site.path.startswith(f"{role}.")
    ]
    return Flow(own, flow.source, {**flow.metadata, "role": role}, flow.notes)
