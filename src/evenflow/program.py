"""A program: all that is needed to train from scratch, as functions that can be called again.

A training script runs once. What has to run several times (the same training with
another seed, with a repair, under watch) is written as a Program:

    program = Program(
        build=lambda seed: Net(),
        optimizer=lambda model: torch.optim.Adam(model.parameters()),
        batches=lambda seed: DataLoader(data, 64, shuffle=True),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    )

It is data: ``dataclasses.replace(program, optimizer=...)`` is the same program with
another optimizer, and that is how a repair is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias, final

from evenflow.errors import ProgramError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Figures: TypeAlias = "Mapping[str, Tensor | float]"
"""What a step tells of itself: name → number, the loss among them."""

_EPOCH_STRIDE = 1_000_003
"""Between the seeds of two rounds through the batches: beyond the seeds that people choose."""


@final
@dataclass(frozen=True, slots=True)
class Program:
    """How to build, feed, judge and move a model.

    Several models that play different roles, such as a generator and a
    discriminator, are mappings throughout: ``build`` and ``optimizer`` return
    ``{role: ...}`` with the same roles, and ``loss`` is ``{role: function}``, in
    the order in which the roles take their turn.

    Attributes:
        build: From a seed to the model, or to models by role. PyTorch's global
            random state is already seeded with it.
        optimizer: From the model to its optimizer, or from the models to optimizers by role.
        batches: From a seed to batches of any kind; started again when it ends.
        loss: From the model (or the models) and a batch to the scalar that is
            lowered. By role, what each of them lowers.
        steps: How many optimizer steps the training takes.
        step: One whole training step (model, optimizer, batch) → figures to log,
            for what the usual one cannot do: zero_grad, loss, backward,
            ``before_step``, optimizer step, role by role.
        before_step: Called with the model whose gradients are complete, before
            its optimizer steps; for clipping.
        scheduler: From an optimizer to something whose ``step()`` is called after
            each training step, such as a ``torch.optim.lr_scheduler``.
        metric: From the trained model to a number, more is better.
        name: What it is called in reports.
    """

    build: Callable[[int], Any]
    optimizer: Callable[[Any], Any]
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, Any], Tensor] | Mapping[str, Callable[[Any, Any], Tensor]]
    steps: int = 200
    step: Callable[[Any, Any, Any], Figures] | None = None
    before_step: Callable[[nn.Module], object] | None = None
    scheduler: Callable[[Optimizer], Any] | None = None
    metric: Callable[[Any], float] | None = None
    name: str = ""

    def start(self, seed: int = 0) -> Training:
        """Build model and optimizer; nothing is trained yet.

        Args:
            seed: Of the weights, of the order of the batches, and of what training draws.

        Raises:
            ProgramError: Models, optimizers and losses do not have the same roles.
        """
        import torch

        torch.manual_seed(seed)
        model = self.build(seed)
        optimizer = self.optimizer(model)
        self._check_roles(model, optimizer)
        return Training(self, seed, model, optimizer)

    def _check_roles(self, model: object, optimizer: object) -> None:
        found = {
            name: tuple(value) if isinstance(value, Mapping) else None
            for name, value in (("build", model), ("optimizer", optimizer), ("loss", self.loss))
        }
        if len({frozenset(roles) if roles else None for roles in found.values()}) > 1:
            told = ", ".join(
                f"{name} gives {'roles ' + ', '.join(roles) if roles else 'a single one'}"
                for name, roles in found.items()
            )
            raise ProgramError(
                f"The program's parts do not fit: {told}. "
                "Give one of each, or mappings with the same roles from build, optimizer and loss."
            )


@final
@dataclass(frozen=True, slots=True)
class Training:
    """A program under way.

    Attributes:
        program: What is trained.
        seed: Of batches and training.
        model: The model, or models by role; trained in place.
        optimizer: The optimizer, or optimizers by role.
    """

    program: Program
    seed: int
    model: Any
    optimizer: Any

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The models by role; a single one has the role ``""``."""
        return self.model if isinstance(self.model, Mapping) else {"": self.model}

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """The optimizers by role."""
        return self.optimizer if isinstance(self.optimizer, Mapping) else {"": self.optimizer}

    @property
    def losses(self) -> Mapping[str, Callable[[Any, Any], Tensor]]:
        """The losses by role, in the order of their turns."""
        loss = self.program.loss
        return loss if isinstance(loss, Mapping) else {"": loss}

    def first_batch(self) -> Any:
        """The batch that training begins with.

        Raises:
            ProgramError: There is none.
        """
        return next(self._batches())

    def run(self, steps: int | None = None) -> Iterator[Figures]:
        """Train, and give the figures of each step after it was taken.

        PyTorch's global random state is seeded at the beginning, so that the same
        training draws the same numbers whatever was done with the model before.

        Args:
            steps: Number of steps; the program's own by default.

        Raises:
            ProgramError: There are no batches.
        """
        import torch

        make = self.program.scheduler
        schedulers = [make(one) for one in self.optimizers.values()] if make is not None else []
        step = self.program.step
        torch.manual_seed(self.seed)
        batches = self._batches()
        for _ in range(self.program.steps if steps is None else steps):
            batch = next(batches)
            yield self._step(batch) if step is None else step(self.model, self.optimizer, batch)
            for scheduler in schedulers:
                scheduler.step()

    def _step(self, batch: Any) -> Figures:
        figures = {}
        for role, loss in self.losses.items():
            name = f"loss/{role}" if role else "loss"
            figures[name] = self._turn(role, loss, batch)
        return figures

    def _turn(self, role: str, loss: Callable[[Any, Any], Tensor], batch: Any) -> Tensor:
        import torch

        optimizer, values = self.optimizers[role], []

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(self.model, batch)
            value.backward()
            if self.program.before_step is not None:
                self.program.before_step(self.models[role])
            values.append(value.detach())
            return value

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        return values[0]

    def _batches(self) -> Iterator[Any]:
        """Batches without end; each time round has a seed of its own."""
        for epoch in count():
            seed, empty = self.seed + _EPOCH_STRIDE * epoch, True
            for batch in self.program.batches(seed):
                empty = False
                yield batch
            if empty:
                raise ProgramError(
                    f"The program's batches({seed}) gave no batch. "
                    "Return something that can be iterated over anew at every call, "
                    "such as a list or a DataLoader; a generator object is spent after one round."
                )
