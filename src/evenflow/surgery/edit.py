"""An edit: one change to a program, as data.

An edit is a frozen dataclass; its fields are what JSON holds. It says what it does
to a model, to an optimizer or to a loss as steps (see :mod:`evenflow.surgery.script`),
worked out for the model at hand, and raises a :class:`PatchError` if it does not fit.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Any, ClassVar

from evenflow.surgery.errors import PatchError
from evenflow.surgery.scene import Scene
from evenflow.surgery.script import Step

EDITS: dict[str, type[Edit]] = {}
"""Every edit by its name in JSON."""


class Applicability(StrEnum):
    """What an edit may change."""

    SAFE = "safe"
    """The same function at the current weights, and the same loss; only numerics are better."""
    UNSAFE = "unsafe"
    """Function, initial weights, loss or optimizer are others."""
    ADVICE = "advice"
    """Nothing is done; a person must."""


class Edit(ABC):
    """One change.

    Class attributes:
        name: In JSON.
        reference: Where the method comes from.
        applicability: What it may change.
        size: How much it counts when patches are compared by size.
        rank: Order on the optimizer: 0 makes another one, 1 sets it up, 2 and 3 touch gradients.
        by_role: Whether its steps for a loss take losses by role; otherwise they are done role by role.
    """

    name: ClassVar[str]
    reference: ClassVar[str] = ""
    applicability: ClassVar[Applicability] = Applicability.UNSAFE
    size: ClassVar[int] = 1
    by_role: ClassVar[bool] = False
    rank: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if EDITS.setdefault(cls.name, cls).__qualname__ != cls.__qualname__:
            raise TypeError(f"two edits are called {cls.name!r}: {EDITS[cls.name]} and {cls}")

    def describe(self) -> str:
        """The change in one line, without a full stop."""
        raise NotImplementedError

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """What is done to the model. The steps before have been carried out when the next is asked for.

        Raises:
            PatchError: The edit does not fit the model.
        """
        return iter(())

    def optimizer_steps(self) -> Iterator[Step]:
        """What is done to the optimizer, which is the variable ``optimizer``."""
        return iter(())

    def loss_steps(self) -> Iterator[Step]:
        """What is done to the loss, a function of (model, batch), the variable ``loss``."""
        return iter(())

    def on_calls(self) -> AbstractContextManager[Any] | None:
        """What does the same as :meth:`loss_steps` where there is no loss function; None if nothing can.

        While it is on, loss functions of PyTorch that are called, and ``backward``, do
        as the edit says.
        """
        return None

    @property
    def measures(self) -> bool:
        """Whether it needs what the model is called with."""
        return False

    @property
    def touches(self) -> frozenset[str]:
        """The parts of a program that it changes: ``model``, ``optimizer``, ``loss``."""
        parts = ("model", "optimizer", "loss")
        own = {
            part
            for part in parts
            if getattr(type(self), f"{part}_steps") is not getattr(Edit, f"{part}_steps")
        }
        return frozenset(own)

    # ------------------------------------------------------------------------ JSON

    def to_json(self) -> dict[str, Any]:
        """The edit's name, and each field that is not at its default."""
        record: dict[str, Any] = {"edit": self.name}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if value != default:
                record[one.name.rstrip("_")] = list(value) if isinstance(value, tuple) else value
        return record

    @staticmethod
    def from_json(record: Any) -> Edit:
        """The edit that :meth:`to_json` wrote.

        Raises:
            PatchError: It is none.
        """
        if not isinstance(record, dict) or "edit" not in record:
            raise PatchError(f'An edit is an object with the key "edit", found {record!r:.80}.')
        kind = EDITS.get(record["edit"])
        if kind is None:
            raise PatchError(f"There is no edit {record['edit']!r}. There are: {', '.join(sorted(EDITS))}.")
        known = {one.name.rstrip("_"): one for one in fields(kind)}  # type: ignore[arg-type]
        values = {key: value for key, value in record.items() if key != "edit"}
        strange = sorted(set(values) - set(known))
        missing = sorted(
            key
            for key, one in known.items()
            if one.default is MISSING and one.default_factory is MISSING and key not in values
        )
        if strange or missing:
            what = f"an unknown key {strange[0]!r}" if strange else f"no key {missing[0]!r}"
            raise PatchError(f"The edit {kind.name!r} has {what}. Its keys are: {', '.join(known)}.")
        made: Edit = kind(**{known[key].name: _frozen(value) for key, value in values.items()})
        return made


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def check_choice(edit: str, key: str, value: object, choices: Iterator[str] | tuple[str, ...]) -> None:
    """Raise unless a setting is one of its choices."""
    offered = tuple(choices)
    if value not in offered:
        raise PatchError(f"{edit} has {key}={value!r}. Expected one of: {', '.join(map(repr, offered))}.")


def check_number(
    edit: str, key: str, value: object, low: float, high: float = float("inf"), *, open_low: bool = True
) -> None:
    """Raise unless a setting is a number between bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (low < value or (value == low and not open_low)) and value <= high:  # type: ignore[operator]
        return
    bound = f"above {low:g}" if open_low else f"of at least {low:g}"
    most = f" and at most {high:g}" if high < float("inf") else ""
    raise PatchError(f"{edit} has {key}={value!r}. Expected a number {bound}{most}.")
