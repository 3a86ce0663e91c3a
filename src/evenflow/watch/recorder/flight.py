"""A flight: what was known when something broke, kept beside the run.

``flight/step-00000123/`` is a run of its own (:func:`evenflow.open_run` reads it,
every rule judges it): the figures and gradient norms of the steps before, sampled
Flows, and as its last Flow the bad pass op by op, where it could be run again.
``flight.json`` beside it says in a few fields what broke and where.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from evenflow.store.errors import StoreError, StoreWarning, tell
from evenflow.store.storage import storage_at
from evenflow.watch.recorder.culprit import Culprit, Direction, Witness

NAME = "flight.json"
FOLDER = "flight"
VERSION = 1
"""Raised when an old reader would misread a new file."""


class Trouble(StrEnum):
    """Why a flight was written."""

    NON_FINITE = "non_finite"
    LOSS_SPIKE = "loss_spike"
    GRADIENT_SPIKE = "gradient_spike"
    EXCEPTION = "exception"


@dataclass(frozen=True, slots=True)
class Flight:
    """What broke, when and where.

    Attributes:
        trouble: Of which kind.
        step: Number of the step, from 0.
        rank: Number of the process.
        message: All of it in one or two sentences.
        culprit: Who made the first bad number; None if that is not known.
        bad_parameters: Parameters whose gradient was not finite, in the model's order.
        notes: What could not be done, and why.
        folder: Where it is kept; None in memory.
    """

    trouble: Trouble
    step: int
    rank: int
    message: str
    culprit: Culprit | None = None
    bad_parameters: Sequence[str] = ()
    notes: Sequence[str] = ()
    folder: str | None = None
    schema: int = field(default=VERSION, kw_only=True)

    def to_json(self) -> str:
        """As a file that a person can read."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Flight:
        """The flight in a file.

        Raises:
            ValueError: It is no flight of this version.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("schema") != VERSION:
            raise ValueError(f"it is no flight of the stored form {VERSION}")
        try:
            fields["trouble"] = Trouble(fields["trouble"])
            fields["culprit"] = _culprit(fields["culprit"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no flight: {error}") from error


def folder_name(step: int, rank: int, world: int) -> str:
    """Name of a flight's folder; with the rank where there are several processes."""
    return f"step-{step:08d}" + (f"-rank{rank}" if world > 1 else "")


def read_flights(path: str | os.PathLike[str]) -> tuple[Flight, ...]:
    """The flights of the run at ``path``, by step and rank; what is damaged is left out with a warning.

    Args:
        path: The run's folder, on the local disk.
    """
    parent = os.path.join(os.fspath(path), FOLDER)
    found = []
    for name in sorted(os.listdir(parent)) if os.path.isdir(parent) else []:
        try:
            found.append(Flight.from_json(storage_at(os.path.join(parent, name)).read(NAME)))
        except (OSError, ValueError, StoreError) as error:
            tell(f"The flight at {parent}/{name} cannot be read: {error}", StoreWarning)
    return tuple(found)


def _culprit(fields: Mapping[str, Any] | None) -> Culprit | None:
    if fields is None:
        return None
    known = dict(fields)
    return Culprit(
        Direction(known.pop("direction")),
        witness=Witness(known.pop("witness")),
        others=tuple(known.pop("others")),
        **known,
    )
