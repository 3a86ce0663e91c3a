"""All probes of a watch: on the modules of its models, and on the parameters of its optimizers.

They are attached while steps are sampled. What they saw in an optimizer's step becomes
a :class:`~evenflow.watch.sample.Sample`. With several optimizers, the time from one optimizer's step to
the next one's is a *turn*, to which the passes are counted that were reached in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from evenflow.watch.inventory import Inventory
from evenflow.watch.layout import MODEL_STRIDE, join
from evenflow.watch.parameters import ParameterProbe
from evenflow.watch.passes import PassProbe
from evenflow.watch.readings import Readings
from evenflow.watch.sample import Sample


@final
class Probes:
    """Puts probes on models and optimizers, and takes them off.

    Args:
        models: Prefix → model.
        optimizers: Name → optimizer.
        modules: Regular expression that the whole path of a module must match; None for all.
        timed: Wraps every hook: measures its time and catches its failures.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        modules: str | None,
        timed: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        pattern = re.compile(modules) if modules is not None else None

        def wanted(name: str) -> bool:
            return pattern is None or pattern.fullmatch(name) is not None

        self.readings = Readings()
        self._inventories = {prefix: Inventory(model) for prefix, model in models.items()}
        self._offsets = {prefix: MODEL_STRIDE * index for index, prefix in enumerate(models)}
        self._passes = {
            prefix: PassProbe(one, wanted, timed, self.readings) for prefix, one in self._inventories.items()
        }
        self.parameters = {
            name: ParameterProbe(
                one, self._inventories, timed, self.readings, self._moved, self._backward_ended
            )
            for name, one in optimizers.items()
        }
        """Those of each optimizer, by its name."""
        self.in_closure = False
        """Whether an optimizer is stepping that evaluates the loss itself."""
        self._turn = 0
        self._sample: Sample | None = None

    # --- on and off -----------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether hooks are on the modules."""
        return any(passes.on for passes in self._passes.values())

    def attach(self) -> Sequence[str]:
        """Put hooks on modules and parameters.

        Returns:
            Parts, by their paths, that turn out to be out of sight: compiled by themselves.
        """
        unseen: list[str] = []
        for prefix, passes in self._passes.items():
            before = passes.unseen
            passes.attach()
            if passes.unseen != before:
                unseen += [join(prefix, path) for path in passes.unseen]
        for probe in self.parameters.values():
            probe.attach()
        return unseen

    def detach(self) -> None:
        """Take the hooks off; they can be attached again."""
        for passes in self._passes.values():
            passes.detach()
        for probe in self.parameters.values():
            probe.detach()

    def remove(self) -> None:
        """Take everything off, for good, and let models and optimizers go."""
        self.detach()
        for passes in self._passes.values():
            passes.remove()
        for probe in self.parameters.values():
            probe.forget()
        self.readings.clear()
        self._passes, self.parameters, self._inventories = {}, {}, {}

    def refresh(self) -> bool:
        """Look whether modules or parameters came or went."""
        changed = [inventory.refresh() for inventory in self._inventories.values()]
        return any(changed)

    # --- an optimizer's step --------------------------------------------------

    @property
    def sampling(self) -> bool:
        """Whether a sample was begun."""
        return self._sample is not None

    def begin_sample(
        self, name: str, norms: Tensor | None, *, closure: bool, scale: float, remaining: float
    ) -> None:
        """In front of an optimizer's step.

        Args:
            name: Which.
            norms: Of its gradients, as :meth:`ParameterProbe.norms` gave them.
            closure: Whether the gradients are still to be taken, inside the step.
            scale: By what gradients were too large during backward.
            remaining: By what they still are.
        """
        self._sample = Sample(
            optimizer=name,
            passes={},
            offsets=self._offsets,
            parameters=self.parameters[name].before_step(norms, self._subjects(name), closure=closure),
            scale=scale,
            remaining=remaining,
        )

    def end_sample(self, *, skipped: bool) -> Sample:
        """What was seen, now that the optimizer has stepped, or did nothing (``skipped``)."""
        sample, self._sample = self._sample, None
        assert sample is not None
        probe = self.parameters[sample.optimizer]
        probe.after_step(skipped=skipped)
        for prefix in self._subjects(sample.optimizer):
            sample.passes[prefix] = self._passes[prefix].collect(self._turn)
        if probe.before_reduction is not None:
            sample.local = probe.before_reduction.take()
        return sample

    def end_turn(self) -> None:
        """An optimizer has stepped."""
        self._turn += 1
        for passes in self._passes.values():
            passes.turn = self._turn
            passes.paused = False
        for probe in self.parameters.values():
            probe.frozen_gradients = False

    def _backward_ended(self) -> None:
        """A closure evaluates the loss again and again; the first time is what the step began with."""
        if self.in_closure:
            for probe in self.parameters.values():
                probe.frozen_gradients = True
            for passes in self._passes.values():
                passes.paused = True

    def _moved(self) -> set[int]:
        """The parameters, by identity, that any optimizer moves."""
        return {id(tensor) for probe in self.parameters.values() for tensor in probe.tensors}

    def _subjects(self, name: str) -> list[str]:
        """Prefixes of the models that an optimizer's steps tell of: those that it moves.

        If no model is moved by any optimizer, which is a fault worth seeing, the first one's
        steps tell of all.
        """
        moved = {id(parameter) for parameter in self.parameters[name].tensors}
        found = [prefix for prefix, passes in self._passes.items() if passes.holds(moved)]
        if found or name != next(iter(self.parameters)):
            return found
        anything = self._moved()
        idle = not any(passes.holds(anything) for passes in self._passes.values())
        return list(self._passes) if idle else []
