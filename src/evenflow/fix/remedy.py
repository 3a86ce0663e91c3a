"""A remedy: a recipe that makes patches for an ill program. One file each in ``remedies/``."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from evenflow.diagnose import CauseName, Finding, Symptom
from evenflow.program import Program, Training
from evenflow.surgery import Patch
from evenflow.trace.structure import tensors_in

if TYPE_CHECKING:
    from evenflow.check import Report

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers that hold the size of the signal."""


@dataclass(frozen=True)
class Case:
    """An ill program, as remedies see it.

    Attributes:
        program: What is to be mended.
        report: What was found.
        training: The program, built and not trained, to look at and not to change.
    """

    program: Program
    report: Report
    training: Training

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The alarms, or all findings if none is one."""
        return self.report.diagnosis.alarms or self.report.findings

    @cached_property
    def causes(self) -> Mapping[CauseName, float]:
        """Every cause that was named, with its best confidence over the findings."""
        found: dict[CauseName, float] = {}
        for finding in self.findings:
            for cause in finding.causes:
                found[cause.name] = max(found.get(cause.name, 0.0), cause.confidence)
        return found

    @cached_property
    def symptoms(self) -> frozenset[Symptom]:
        """Every symptom that was found."""
        return frozenset(finding.symptom for finding in self.findings)

    @property
    def optimizers(self) -> list[Optimizer]:
        """All optimizers."""
        return list(self.training.optimizers.values())

    @property
    def frozen(self) -> bool:
        """Whether parameters are switched off."""
        return any(not p.requires_grad for model in self.training.models.values() for p in model.parameters())

    @cached_property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and targets of the first batch, if it is a pair of tensors."""
        batch = self.training.first_batch()
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            inputs, targets = batch
            if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
                return inputs, targets
        return None

    @cached_property
    def batch_size(self) -> int:
        """Samples of the first batch; 1 if that cannot be told."""
        return next((len(one) for one in tensors_in(self.training.first_batch()) if one.dim()), 1)

    @property
    def sequence_length(self) -> int | None:
        """Time steps of the first batch, if inputs are [batch, steps, …]."""
        if self.pair is None or self.pair[0].dim() < 2:
            return None
        return max(3, self.pair[0].shape[1])

    def modules(self, *kinds: type[nn.Module]) -> list[tuple[str, nn.Module]]:
        """Path and module of every module of some kinds."""
        return [
            (f"{role}.{path}".strip("."), module)
            for role, model in self.training.models.items()
            for path, module in model.named_modules()
            if isinstance(module, kinds)
        ]


class Remedy(ABC):
    """A recipe.

    Class attributes:
        name: What it is called.
        causes: Causes that it cures, and how well: from 0 to 1.
        symptoms: Symptoms that it helps against whatever the cause, likewise.
        reference: Where it comes from.
        unless: When it does not apply, in words.
        last: Whether it is a last resort, tried only if no single other patch is confirmed.
    """

    name: ClassVar[str]
    causes: ClassVar[Mapping[CauseName, float]] = {}
    symptoms: ClassVar[Mapping[Symptom, float]] = {}
    reference: ClassVar[str]
    unless: ClassVar[str] = ""
    last: ClassVar[bool] = False

    def promise(self, case: Case) -> float:
        """How likely it is to help, from 0 (not worth a trial) to 1."""
        by_cause = [weight * case.causes.get(cause, 0.0) for cause, weight in self.causes.items()]
        by_symptom = [0.5 * weight for symptom, weight in self.symptoms.items() if symptom in case.symptoms]
        return max([0.0, *by_cause, *by_symptom])

    def first(self, case: Case) -> int:
        """How many of its patches go before all others, as a recipe made for just this case; mostly none.

        These are compared with the program at once, and the other candidates are
        measured and raced only if none of them is confirmed.
        """
        return 0

    def reason(self, case: Case) -> str:
        """Why it is tried."""
        named = {cause for cause in self.causes if cause in case.causes}
        met = {symptom for symptom in self.symptoms if symptom in case.symptoms}
        words = sorted(str(one).replace("_", " ") for one in named or met)
        return ", ".join(words)

    @abstractmethod
    def patches(self, case: Case) -> Iterator[Patch]:
        """Patches to try, the most promising first; none if it does not apply."""


@cache
def remedies() -> tuple[Remedy, ...]:
    """Every remedy, by name; found by listing the folder."""
    from evenflow.fix import remedies as package

    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    kinds = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Remedy) and value.__module__ == module.__name__
    ]
    return tuple(kind() for kind in sorted(kinds, key=lambda kind: kind.name))
