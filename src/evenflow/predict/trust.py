"""Where a prediction is not to be trusted, and says so.

It is a mean over random weights of wide layers. One draw says little about it
where layers are narrow or the net is deep for its width; the mean itself is
off where inputs are nothing like Gaussian, or a batch is too small for
BatchNorm's statistics. There the prediction *abstains*: the numbers stand in
the table, but no rule judges them, and one measured batch is the better answer.

References:
    B. Hanin 2018 (β, the variance of ln ‖gradient‖² over draws; at depth/width =
    0.3 it is about 1). B. Hanin & M. Nica 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evenflow.flow import Role, Row
from evenflow.predict.inputs import Described
from evenflow.predict.spread import in_decades
from evenflow.theory.chains import NARROW
from evenflow.trace.structure import tensors_in

SPREAD = in_decades(1.0)
"""Half-width in decades of RMS at β = 1."""

SMALL_BATCH = 8
"""Below it E 1/v̂ of a BatchNorm, ν/(ν − 2) with ν about the batch, is off its mean by a third or more."""

HEAVY_TAILS = 10.0
"""Kurtosis E x⁴/(E x²)² beyond that of the exponential distribution, 9. Gaussian: 3."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason, and whether it makes the prediction abstain."""

    text: str
    abstains: bool


def doubts(model: nn.Module, inputs: Any, rows: Iterable[Row]) -> tuple[Doubt, ...]:
    """All reasons for doubt.

    Args:
        model: What was predicted.
        inputs: What it was called with.
        rows: The prediction, intervals included.
    """
    return (*_narrow(model), *_spread(rows), *_batch_norm(model, inputs), *_tails(inputs), *_tied(model))


def _narrow(model: nn.Module) -> Iterator[Doubt]:
    """Hidden layers; the last one has as many units as there are classes."""
    widths = [
        (module.weight.shape[0], name)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ][:-1]
    if widths and min(widths)[0] <= NARROW:
        width, name = min(widths)
        yield Doubt(f"The layer {name} has {width} units; mean-field theory needs more than {NARROW}.", True)


def _spread(rows: Iterable[Row]) -> Iterator[Doubt]:
    """What the net adds to β; that of the loss is there at any depth."""
    known = [row for row in rows if row.site.role is Role.ACTIVATION_GRADIENT and row.half_width is not None]
    if not known:
        return
    worst = max(known, key=lambda row: row.half_width or 0.0)
    last = max(known, key=lambda row: row.order)
    added = math.sqrt(max((worst.half_width or 0.0) ** 2 - (last.half_width or 0.0) ** 2, 0.0))
    if added > SPREAD:
        yield Doubt(
            f"Nets drawn alike differ widely: between the end and {worst.site.label} the gradient of one "
            f"gains or loses up to {added:.2f} decades more than their mean. Beyond {SPREAD:.2f} one draw "
            "says little about another.",
            True,
        )


def _batch_norm(model: nn.Module, inputs: Any) -> Iterator[Doubt]:
    size = min((value.shape[0] for value in _given(inputs) if value.shape), default=SMALL_BATCH)
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if model.training and norms and size < SMALL_BATCH:
        yield Doubt(
            f"{norms[0]} normalises over a batch of {size}; its statistics need {SMALL_BATCH} or more.", True
        )


def _tails(inputs: Any) -> Iterator[Doubt]:
    for value in _given(inputs):
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and not value.is_meta:
            square = value.detach().double().square()
            kurtosis = square.square().mean() / square.mean().square()
            if kurtosis > HEAVY_TAILS:
                yield Doubt(
                    f"An input of shape {list(value.shape)} is sparse or heavy-tailed (E x⁴/(E x²)² is "
                    f"{kurtosis.item():.0f}, Gaussian 3); the prediction takes it as Gaussian.",
                    True,
                )


def _tied(model: nn.Module) -> Iterator[Doubt]:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            yield Doubt(
                f"{first} is used again as {name}; what the two uses share is followed in linear layers "
                "that are each other's transpose and in heads that are the embedding, and nowhere else.",
                False,
            )


def _given(inputs: Any) -> list[Tensor | Described]:
    if isinstance(inputs, Described):
        return [inputs]
    if isinstance(inputs, dict):
        return [found for value in inputs.values() for found in _given(value)]
    if isinstance(inputs, (tuple, list)):
        return [found for value in inputs for found in _given(value)]
    return list(tensors_in(inputs))
