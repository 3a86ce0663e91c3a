"""The oracle of every rule: the real module, run many times with fresh weights.

``disagreement`` compares a prediction with the mean square over draws, at every
site, and counts in standard errors as well as in relative size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict


def disagreement(
    build: Callable[[], nn.Module],
    inputs: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    *,
    draws: int = 24,
    roles: tuple[Role, ...] = (Role.ACTIVATION, Role.ACTIVATION_GRADIENT, Role.PARAMETER_GRADIENT),
) -> dict[str, tuple[float, float]]:
    """Site → (log10 of RMS predicted over measured, its standard error).

    Sites that were measured and not predicted have an error of infinity.
    """
    predicted = {row.site: row.stats for row in predict(build, inputs, loss) if row.stats is not None}
    squares: dict[Any, list[float]] = {}
    for seed in range(draws):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        for row in measure(model, inputs, loss):
            if row.stats is not None and row.site.role in roles:
                squares.setdefault(row.site, []).append(row.stats.mean_square)
    found = {}
    for site, values in squares.items():
        mean = sum(values) / len(values)
        if site not in predicted:
            found[f"{site.role}:{site.label}"] = (math.inf, 0.0)
            continue
        ours = predicted[site].mean_square
        if mean == 0.0 or ours == 0.0:
            found[f"{site.role}:{site.label}"] = (
                0.0 if mean < 1e-10 * max(*values, 1e-20) or ours == mean or mean < 1e-14 else math.inf,
                0.0,
            )
            continue
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) / len(values))
        found[f"{site.role}:{site.label}"] = (math.log10(ours / mean) / 2, spread / mean / 2 / math.log(10))
    return found


def worst(found: dict[str, tuple[float, float]], sigmas: float = 4.0) -> tuple[str, float]:
    """The site that is furthest off beyond its own sampling error, and by how many decades."""
    excess = {site: max(0.0, abs(error) - sigmas * standard) for site, (error, standard) in found.items()}
    site = max(excess, key=lambda s: excess[s])
    return site, excess[site]
