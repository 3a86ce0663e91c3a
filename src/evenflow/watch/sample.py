"""What is known of a step before it is written: figures, events, and samples of what tensors held."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from evenflow.watch.moments import Rows
from evenflow.watch.outputs import Pass
from evenflow.watch.parameters import ParameterSample
from evenflow.watch.ranks.local_gradients import LocalBackward


@dataclass(slots=True)
class Sample:
    """What was seen in one optimizer's step.

    Attributes:
        optimizer: Its name.
        passes: Prefix of a model → the passes that count.
        offsets: Prefix of a model → what its orders start from.
        parameters: Its parameters.
        scale: By what gradients were too large during backward.
        remaining: By what they still are when the optimizer gets them (fused optimizers).
        local: Gradients before ranks reduce them, backward pass by backward pass.
    """

    optimizer: str
    passes: dict[str, list[Pass]]
    offsets: dict[str, int]
    parameters: ParameterSample
    scale: float = 1.0
    remaining: float = 1.0
    local: list[LocalBackward] = field(default_factory=list)

    def structure(self) -> tuple[object, ...]:
        """Equal where two samples differ by numbers only."""
        return (
            tuple((prefix, *(one.structure() for one in passes)) for prefix, passes in self.passes.items()),
            tuple(self.offsets.items()),
            self.parameters.structure(),
        )

    def matrix(self) -> Rows:
        """Moments, dead and saturated shares of passes, weights and gradients [rows, 7]."""
        passes = [one for some in self.passes.values() for one in some]
        moments = np.concatenate([*(one.moments() for one in passes), *self.parameters.moments()])
        shares = np.full((len(moments), 2), np.nan)
        if passes:
            of_outputs = np.concatenate([one.shares() for one in passes])
            shares[: len(of_outputs)] = of_outputs
        return np.hstack([moments, shares])


@dataclass(slots=True)
class Step:
    """What is known of one step: figures by name (several values are averaged), samples, events.

    On several ranks also, by optimizer, parameters and the norms of what this rank holds of their
    gradients, as the optimizer got them.
    """

    number: int
    figures: dict[str, list[float | Tensor]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    norms: dict[str, tuple[tuple[str, ...], Tensor]] = field(default_factory=dict)
