"""What can be measured again: a model with a batch, or a program, always as a copy with a patch on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from evenflow.flow import Flow
from evenflow.measure import measure, measure_loss
from evenflow.measure.first import first_flows
from evenflow.program import Program
from evenflow.surgery import Patch, PatchError
from evenflow.trace.pairing import PairLoss
from evenflow.trace.structure import tensors_in


class Subject(ABC):
    """Something ill, as it is.

    Attributes:
        model: A module, or modules by role; looked at and never changed.
        inputs: What the model is called with, as far as that is known.
        targets: What its output is compared with; None if not known.
        flows: What was measured, by role.
    """

    model: nn.Module | Mapping[str, nn.Module]
    inputs: Any
    targets: Any
    flows: Mapping[str, Flow]

    @property
    def features(self) -> Tensor | None:
        """The floating tensor that goes into the model, if there is just one."""
        found = [one for one in tensors_in(self.inputs) if one.is_floating_point()]
        return found[0] if len(found) == 1 else None

    @abstractmethod
    def measured(self, patch: Patch) -> Mapping[str, Flow]:
        """The same batch through a patched copy.

        Raises:
            PatchError: The patch does not fit.
            EvenflowError: The copy cannot be measured.
        """


@final
@dataclass(frozen=True)
class OneBatch(Subject):
    """A model and a batch.

    Attributes:
        loss: From the model's output to a scalar; None: as :func:`evenflow.measure` does without one.
        seed: Of the random cotangent.
    """

    model: nn.Module
    inputs: Any
    loss: Callable[[Any], Tensor] | None
    seed: int
    flow: Flow

    @property
    def targets(self) -> Any:
        """What a loss of two arguments was given."""
        return self.loss.targets if isinstance(self.loss, PairLoss) else None

    @property
    def flows(self) -> Mapping[str, Flow]:  # type: ignore[override]
        """The batch as it was measured."""
        return {"": self.flow}

    def measured(self, patch: Patch) -> Mapping[str, Flow]:
        """See :class:`Subject`."""
        copy = patch.apply(self.model, self.inputs)
        if "loss" not in patch.touches:
            return {"": measure(copy, self.inputs, self.loss, seed=self.seed)}
        if self.loss is None:
            raise PatchError("The model was measured without a loss, and this changes the loss.")
        given = self.loss
        loss = patch.loss(lambda model, batch: given(_called(model, batch)))
        return {"": measure_loss(copy, lambda: loss(copy, self.inputs), self.inputs)}


@final
class FirstBatch(Subject):
    """A program and its first batch.

    Args:
        program: What is ill.
        seed: Of its weights, batches and draws.
        flows: Its first batch as it was measured, by role.
    """

    def __init__(self, program: Program, seed: int, flows: Mapping[str, Flow]) -> None:
        self.program, self.seed, self.flows = program, seed, flows
        with torch.random.fork_rng(devices=[]):
            training = program.start(seed)
            batch = training.first_batch()
        self.model = training.model
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        self.inputs, self.targets = batch if is_pair else (batch, None)

    def measured(self, patch: Patch) -> Mapping[str, Flow]:
        """See :class:`Subject`."""
        return first_flows(patch.program(self.program), self.seed)


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if type(inputs) is tuple else model(inputs)
