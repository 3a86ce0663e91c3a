"""Synthetic Flows: plain chains of ops with given sizes and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evenflow.flow import LOSS_PATH, Flow, ModuleCall, Role, Row, Site, Stats


@dataclass(frozen=True)
class Op:
    """One op of a chain.

    Attributes:
        name: PyTorch's name.
        gain: Backward gain of the link below it: ‖gradient at input‖ / ‖gradient at output‖.
        size: RMS of its output.
        weight: RMS of its weight [units, units]; None for ops without one.
        dead: See ``Row.dead_fraction``.
        flat: See ``Row.saturated_fraction``.
        zeros: Share of zeros in its output.
        path: Module path; its position by default.
    """

    name: str
    gain: float = 1.0
    size: float = 1.0
    weight: float | None = None
    dead: float | None = None
    flat: float | None = None
    zeros: float = 0.0
    path: str | None = None


def chain(
    ops: Sequence[Op], *, batch: int = 64, units: int = 100, dtype: str = "float32", top: float = 1.0
) -> Flow:
    """A Flow of ops one after another; the gradient at the last one has norm ``top``."""
    rows: list[Row] = []
    norm = top
    norms = [0.0] * len(ops)
    for i in reversed(range(len(ops))):
        norms[i] = norm
        norm *= ops[i].gain
    count = batch * units
    for i, op in enumerate(ops):
        path = str(i) if op.path is None else op.path
        common = Row(
            Site(path, op.name, Role.ACTIVATION),
            order=i,
            module_type=op.name.title(),
            shape=(batch, units),
            dtype=dtype,
            inputs=(i - 1,) if i else (),
            output_of=() if path == LOSS_PATH else (ModuleCall(path),),
            source=f"net.py:{i + 1}",
        )
        rows.append(
            replace(
                common,
                stats=tensor(count, op.size, zeros=op.zeros),
                dead_fraction=op.dead,
                saturated_fraction=op.flat,
            )
        )
        rows.append(
            replace(
                common,
                site=replace(common.site, role=Role.ACTIVATION_GRADIENT),
                stats=tensor(count, norms[i] / math.sqrt(count)),
            )
        )
        if op.weight is not None:
            name = f"{path}.weight"
            for role, rms in (
                (Role.PARAMETER, op.weight),
                (Role.PARAMETER_GRADIENT, norms[i] / math.sqrt(units)),
            ):
                rows.append(
                    Row(
                        Site(name, "parameter", role),
                        order=i,
                        module_type="Linear",
                        shape=(units, units),
                        dtype=dtype,
                        stats=tensor(units * units, rms),
                    )
                )
    return Flow(rows, "measured", {"loss": 1.0})


def tensor(count: int, rms: float, *, zeros: float = 0.0, nonfinite: int = 0) -> Stats:
    """Statistics of a tensor of mean zero."""
    return Stats(
        count=count,
        mean=0.0,
        mean_square=rms**2,
        abs_max=4.0 * rms,
        zero_count=round(zeros * count),
        nonfinite_count=nonfinite,
    )


def mlp(layers: int, function: str, *, weights: float, slope: float, head: float | None = None) -> list[Op]:
    """``layers`` linear ops with an activation between each two: gains of the weights and of the function."""
    weight = weights / 10.0  # RMS of a [100, 100] weight of that gain
    ops = [Op("addmm", 1.0, weight=weight)]
    for i in range(1, layers):
        gain = weights if head is None or i < layers - 1 else head
        ops += [Op(function, slope), Op("addmm", gain, weight=weight)]
    return ops


def along_time(**log10_norms: Sequence[float]) -> Flow:
    """A recurrent layer between two linear ones; state → log10 of the gradient's norm at t = 0, 1, …"""
    flow = chain([Op("addmm"), Op("lstm", path="layer"), Op("addmm")])
    steps = [
        Row(
            Site("layer", state, Role.ACTIVATION_GRADIENT, time=t),
            order=1,
            module_type="LSTM",
            shape=(64, 100),
            stats=tensor(6400, 10**norm / math.sqrt(6400)),
        )
        for state, norms in log10_norms.items()
        for t, norm in enumerate(norms)
    ]
    return Flow([*flow, *steps], "measured")
