"""Which step figures and events belong to.

A step that has ended still takes figures: a loss is often logged after
``optimizer.step()``. So it is kept until the next one ends, and only then waits
for the thread that writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from evenflow.watch.errors import WatchError
from evenflow.watch.sample import Step


@final
class Timeline:
    """The step that runs, the one that ended last, and those that wait to be written."""

    def __init__(self) -> None:
        self.running = Step(0)
        self._ended: Step | None = None
        self._waiting: list[Step] = []
        self._belongs_to_ended: dict[str, bool] = {}

    @property
    def waiting(self) -> int:
        """How many steps wait to be written."""
        return len(self._waiting)

    def log(
        self, figures: Mapping[str, float | Tensor], *, between_steps: bool
    ) -> Mapping[str, float | Tensor]:
        """Add figures that the user gave.

        Args:
            figures: Name → a number, or a tensor of one entry, which is not waited for.
            between_steps: Whether no optimizer has stepped yet in the step that runs.
                A name first seen then belongs to the step that ended, from then on.

        Returns:
            The figures as they are kept: tensors only where a device would be waited for.

        Raises:
            WatchError: A value is no number.
        """
        kept = {name: _number(name, value) for name, value in figures.items()}
        for name, figure in kept.items():
            late = self._belongs_to_ended.setdefault(name, self._ended is not None and between_steps)
            step = self._ended if late and self._ended is not None else self.running
            step.figures.setdefault(name, []).append(figure)
        return kept

    def add(self, name: str, value: float | Tensor) -> None:
        """Add a figure to the step that runs."""
        self.running.figures.setdefault(name, []).append(value)

    def event(self, kind: str, text: str) -> None:
        """Write down that something happened in the step that runs."""
        self.running.events.append((kind, text))

    def end_step(self) -> None:
        """The next step runs from here on."""
        if self._ended is not None:
            self._waiting.append(self._ended)
        self._ended, self.running = self.running, Step(self.running.number + 1)

    def end(self) -> None:
        """No step is to come: all that are here wait to be written."""
        self._waiting += [step for step in (self._ended, self.running) if step is not None]
        self._ended = None

    def take(self) -> list[Step]:
        """The steps that wait to be written; they wait no longer."""
        steps, self._waiting = self._waiting, []
        return steps


def _number(name: str, value: float | Tensor) -> float | Tensor:
    """A figure that the recorder can read later, of a value that may change until then."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise WatchError(
                f"log({name}=...) got a tensor of shape {list(value.shape)}; expected a single number. "
                f"Log its mean, for instance: log({name}=value.mean())."
            )
        value = value.detach()
        return float(value) if value.is_cpu else value.clone()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise WatchError(
            f"log({name}=...) got {value!r}; expected a number or a tensor of one entry."
        ) from None
