"""Another optimizer, other settings, another learning rate, warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import nn

from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.optimizing import parameter_groups, scale_lr, set_option, warm_up
from evenflow.surgery.script import Call, Ref, Set, Step, call, step

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}

_HERE = Ref("optimizer")


@final
@dataclass(frozen=True)
class SetOptimizer(Edit):
    """Another optimizer over the same parameter groups; their weight decay and ratio of learning rates stay.

    Attributes:
        to: Its name: ``sgd``, ``adam``, ``adamw``, ….
        lr: Its learning rate (of the first group).
        settings: Its other settings, e.g. ``{"momentum": 0.9}``.
    """

    rank: ClassVar[int] = 0
    name: ClassVar[str] = "set_optimizer"
    to: str
    lr: float
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, tuple(OPTIMIZERS))
        check_number(self.name, "lr", self.lr, 0.0)
        try:
            OPTIMIZERS[self.to]([nn.Parameter(torch.zeros(1))], lr=self.lr, **self._given)
        except (TypeError, ValueError) as error:
            raise PatchError(f"set_optimizer has settings={self.settings!r}: {error}") from None

    @property
    def _given(self) -> dict[str, Any]:
        """Settings as PyTorch wants them: pairs are tuples."""
        return {key: tuple(v) if isinstance(v, list) else v for key, v in self.settings.items()}

    def describe(self) -> str:
        """See :class:`Edit`."""
        told = "".join(f", {key}={value}" for key, value in self.settings.items())
        return f"the optimizer is {self.to} with learning rate {self.lr:g}{told}"

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        groups = call(parameter_groups, _HERE, self.lr)
        yield step(Set(_HERE, Call(OPTIMIZERS[self.to], (groups,), {"lr": self.lr, **self._given})))


@final
@dataclass(frozen=True)
class SetLearningRate(Edit):
    """Another learning rate: a factor for all groups, or one number for all.

    Attributes:
        factor: What the learning rates are multiplied with.
        lr: The learning rate itself. Give one of the two.
    """

    name: ClassVar[str] = "set_learning_rate"
    factor: float | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.lr is None):
            raise PatchError("set_learning_rate takes either factor or lr. Give exactly one of the two.")
        check_number(self.name, *(("lr", self.lr) if self.factor is None else ("factor", self.factor)), 0.0)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the learning rate is {'times ' if self.lr is None else ''}{self.factor or self.lr:g}"

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        if self.factor is not None:
            yield step(Set(_HERE, call(scale_lr, _HERE, self.factor)))
        else:
            yield step(Set(_HERE, call(set_option, _HERE, "lr", self.lr)))


@final
@dataclass(frozen=True)
class SetOption(Edit):
    """An option of the optimizer, in all its groups: ``eps``, ``betas``, ``momentum``, ``weight_decay``, ….

    Attributes:
        option: Its name.
        value: A number, a truth value or a pair of numbers.
    """

    name: ClassVar[str] = "set_option"
    option: str
    value: float | bool | tuple[float, float]

    def __post_init__(self) -> None:
        if not self.option.isidentifier() or self.option in ("params", "lr"):
            raise PatchError(
                f"set_option has option={self.option!r}. Expected an option such as 'eps' or 'weight_decay'; "
                "for the learning rate take SetLearningRate."
            )

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the optimizer's {self.option} is {self.value}"

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(_HERE, call(set_option, _HERE, self.option, self.value)))


@final
@dataclass(frozen=True)
class WarmUp(Edit):
    """Let the learning rate rise linearly from 1/steps of itself; a scheduler goes on beside it.

    Attributes:
        steps: Number of updates until it is whole.
    """

    name: ClassVar[str] = "warm_up"
    reference: ClassVar[str] = "Goyal et al. 2017, section 2.2"
    steps: int

    def __post_init__(self) -> None:
        check_number(self.name, "steps", self.steps, 1, open_low=False)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"the learning rate rises over the first {self.steps} steps"

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        yield step(Set(_HERE, call(warm_up, _HERE, self.steps)))
