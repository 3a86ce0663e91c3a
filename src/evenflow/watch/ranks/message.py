"""What one rank says to the others: figures, events, and samples of what its part of the tensors held.

Rows are moments of which micro-batches are joined and loss scales undone already, so
that ranks need not agree on either. What rows say besides numbers is a
:class:`Structure`, which is sent when it is new only: from step to step nothing but
numbers goes over the wire, ten of eight bytes for each row.

Every column declares how it merges (:data:`COLUMNS`), across ranks as across the
pieces of a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evenflow.flow import Role, Status
from evenflow.watch.layout import Entry
from evenflow.watch.moments import Rows
from evenflow.watch.ranks.placement import Piece


class Column(NamedTuple):
    """A number of a row, and how the numbers of two parts make that of the whole."""

    name: str
    merge: np.ufunc


COLUMNS = (
    Column("count", np.add),
    Column("total", np.add),
    Column("square", np.add),
    Column("largest", np.maximum),
    Column("nonfinite", np.add),
    Column("dead_share", np.fmin),  # what is dead for the whole batch is dead in each part of it
    Column("saturated", np.add),
    Column("clipped_square", np.add),
    Column("second_moment", np.add),
    Column("lost", np.add),
)
COUNT, TOTAL, SQUARE, LARGEST, NONFINITE, DEAD, SATURATED, CLIPPED, SECOND, LOST = range(len(COLUMNS))

Vector = npt.NDArray[np.float32]


class Line(NamedTuple):
    """What a row says besides numbers, the optimizer of its sample, and which piece it is about."""

    entry: Entry
    optimizer: str
    piece: Piece


Structure = tuple[Line, ...]


class Backward(NamedTuple):
    """The gradient of one backward pass on one rank, before any reduction.

    Attributes:
        optimizer: Name of the optimizer that moves the parameters.
        norm: Its norm over all parameters, not finite entries left out.
        nonfinite: Number of entries that are not finite.
        worst: The parameter that had the first such entry, else that with the largest norm.
    """

    optimizer: str
    norm: float
    nonfinite: int
    worst: str


@dataclass(frozen=True)
class Sampled:
    """A sampled step.

    Attributes:
        step: Its number.
        structure: Number of its structure, as this rank counts them.
        rows: A row for each line of the structure [lines, columns].
        backwards: The backward passes of the step, in order.
        addends: Line → this rank's addend of a gradient, and of the same after clipping [2, entries].
    """

    step: int
    structure: int
    rows: Rows
    backwards: tuple[Backward, ...] = ()
    addends: Mapping[int, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """What a rank says.

    Attributes:
        steps: First and last step that it is about.
        wait: In how many steps this rank can afford another sample.
        peers: Ranks that see the same batch as this one.
        divisor: By what sums of gradients are divided; None for the number of summands.
        structures: Those that were not sent before, by number.
        figures: Step, name, value.
        squares: Step, optimizer, number of gradients counted, sum of their squares: of those that this
            rank answers for.
        events: Step, kind, text.
        samples: The sampled steps.
    """

    steps: tuple[int, int]
    wait: int
    peers: tuple[int, ...]
    divisor: float | None = None
    structures: Mapping[int, Structure] = field(default_factory=dict)
    figures: tuple[tuple[int, str, float], ...] = ()
    squares: tuple[tuple[int, str, float], ...] = ()
    events: tuple[tuple[int, str, str], ...] = ()
    samples: tuple[Sampled, ...] = ()


def encode(message: Message) -> bytes:
    """As bytes: the length of the words, the words in JSON, then the arrays one after the other."""
    arrays: list[bytes] = []
    samples = []
    for one in message.samples:
        arrays.append(one.rows.tobytes())
        addends = [(line, vector.shape[1]) for line, vector in one.addends.items()]
        arrays += [vector.tobytes() for vector in one.addends.values()]
        samples.append([one.step, one.structure, len(one.rows), one.backwards, addends])
    words = {
        "steps": message.steps,
        "wait": message.wait,
        "peers": message.peers,
        "divisor": message.divisor,
        "structures": {number: [_plain(line) for line in one] for number, one in message.structures.items()},
        "figures": message.figures,
        "squares": message.squares,
        "events": message.events,
        "samples": samples,
    }
    head = json.dumps(words).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *arrays])


def decode(content: bytes) -> Message:
    """The inverse of :func:`encode`."""
    end = 8 + int.from_bytes(content[:8], "little")
    words = json.loads(content[8:end])
    samples = []
    for step, structure, lines, backwards, addends in words["samples"]:
        rows = np.frombuffer(content, np.float64, lines * len(COLUMNS), end).reshape(lines, len(COLUMNS))
        end += rows.nbytes
        vectors: dict[int, Vector] = {}
        for line, entries in addends:
            vectors[line] = np.frombuffer(content, np.float32, 2 * entries, end).reshape(2, entries)
            end += vectors[line].nbytes
        samples.append(Sampled(step, structure, rows, tuple(Backward(*one) for one in backwards), vectors))
    return Message(
        steps=tuple(words["steps"]),
        wait=words["wait"],
        peers=tuple(words["peers"]),
        divisor=words["divisor"],
        structures={int(number): tuple(map(_line, lines)) for number, lines in words["structures"].items()},
        figures=tuple(map(tuple, words["figures"])),
        squares=tuple(map(tuple, words["squares"])),
        events=tuple(map(tuple, words["events"])),
        samples=tuple(samples),
    )


def _plain(line: Line) -> list[Any]:
    fields: list[Any] = [*line.entry]
    fields[line.entry._fields.index("dtype")] = str(line.entry.dtype).removeprefix("torch.")
    return [fields, line.optimizer, line.piece]


def _line(plain: list[Any]) -> Line:
    fields, optimizer, piece = plain
    path, call, op, role, order, module_type, shape, dtype, status, inputs, output_of = fields
    entry = Entry(
        path, call, op, Role(role), order, module_type, tuple(shape), getattr(torch, dtype), Status(status),
        tuple(inputs), tuple((name, number) for name, number in output_of),
    )  # fmt: skip
    return Line(entry, optimizer, Piece(*piece))
