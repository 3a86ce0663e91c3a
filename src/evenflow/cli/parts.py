"""What a TARGET gives: a model with its batch and loss, or the way to build it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class Target:
    """What TARGET gave.

    Attributes:
        model: The model.
        inputs: What it is called with: a tensor, a tuple or a dict; None: nothing was given.
        loss: From the model's output to a scalar; None: nothing was given.
        notes: What the user should know of the data, one fact each.
    """

    model: nn.Module
    inputs: Any = None
    loss: Callable[[Any], Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What TARGET gave, without weights where it can be had so.

    Attributes:
        build: Builds the model, on the meta device too; or the model itself, where
            the user's code gave it with its weights.
        inputs: What the model is called with.
        loss: From the model's output to a scalar; None: nothing was given.
        at_depth: From a depth to such a builder; None if the target has no depth to set.
        notes: What the user should know, one fact each.
    """

    build: nn.Module | Callable[[], nn.Module]
    inputs: Any
    loss: Callable[[Any], Any] | None = None
    at_depth: Callable[[int], Callable[[], nn.Module]] | None = None
    notes: tuple[str, ...] = ()
