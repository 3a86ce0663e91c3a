"""What ``run.json`` says of a run: versions, model, optimizers, settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from evenflow import __version__
from evenflow.watch.governor import Allowance, Budget


def facts(
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    budget: Budget,
    config: Mapping[str, Any],
    ranks: int = 1,
) -> dict[str, Any]:
    """The facts on a run, as JSON holds them."""
    return {
        "evenflow": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": {name: type(model).__name__ for name, model in models.items()}
        if "" not in models
        else type(models[""]).__name__,
        "parameters": sum(p.numel() for model in models.values() for p in model.parameters()),
        "optimizer": {name: _settings(one) for name, one in optimizers.items()},
        "budget": str(budget) if isinstance(budget, Allowance) else budget,
        "ranks": ranks,
        "config": dict(config),
    }


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Class and numbers of an optimizer."""
    numbers = {
        name: value
        for name, value in optimizer.defaults.items()
        if isinstance(value, (int, float, str, bool, tuple)) or value is None
    }
    return {"class": type(optimizer).__name__, **numbers}
