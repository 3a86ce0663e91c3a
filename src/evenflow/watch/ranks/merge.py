"""From what all ranks say of some steps to the tables that one process on the whole batch would have made.

* Parameters, their gradients and updates: each piece once, whoever holds it, and the
  pieces together. Of replicas the lowest rank's counts.
* Activations: ranks see different parts of the batch, which are joined. Tensor-
  parallel peers see the same batch; what they hold of one tensor are shards of it or
  copies. A plain tensor does not say which, but moments do: copies agree in all of them,
  to 1e-6, those of the tensor and those of its gradient. Shards agree in both only
  where both are constant.
* Gradients of activations: the loss of data-parallel training is the mean of the
  ranks' losses, and each rank runs backward on its own; so they are too large by the
  number of ranks that see different parts of the batch.
* A partial sum has no moments until it is taken; its addends are small (weights of
  norms, under sequence parallelism), so they are sent whole, and added up here.
* Figures: the mean over the ranks; norms from the squares of the gradients that each
  rank answers for. Events: once, if all ranks tell it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import pyarrow as pa

from evenflow.flow import Role, Status
from evenflow.flow.arrow import to_arrow
from evenflow.store.schema import TABLES
from evenflow.watch.layout import Entry
from evenflow.watch.moments import Rows
from evenflow.watch.ranks.message import (
    CLIPPED,
    COLUMNS,
    COUNT,
    DEAD,
    LARGEST,
    LOST,
    NONFINITE,
    SATURATED,
    SECOND,
    SQUARE,
    TOTAL,
    Line,
    Message,
    Sampled,
    Structure,
    Vector,
)  # fmt: skip
from evenflow.watch.ranks.outliers import outliers

_OF_OUTPUTS = (Role.ACTIVATION, Role.ACTIVATION_GRADIENT)
_ALIKE = 1e-6
"""Relative difference of moments up to which tensors count as copies: what the figures are good to."""
_MOST_JOINTS = 256
"""Combinations of structures that are remembered."""


class RanksDisagreeError(Exception):
    """The ranks do not speak of the same steps; the text says of which."""


class Said(NamedTuple):
    """A line that a rank said, and where its numbers stand in the rows of all ranks."""

    rank: int
    line: Line
    row: int


class Joint:
    """The rows of a step, and which rows of which ranks make them.

    Args:
        structures: The structure of each rank.
        peers: For each rank those that see the same batch.
        divisors: For each rank by what sums of gradients are divided; None for the number of summands.
    """

    def __init__(
        self,
        structures: Sequence[Structure],
        peers: Sequence[tuple[int, ...]],
        divisors: Sequence[float | None],
    ) -> None:
        said: dict[tuple[str, int, Role], list[Said]] = {}
        row = 0
        for rank, structure in enumerate(structures):
            for line in structure:
                key = line.entry.path, line.entry.call, line.entry.role
                said.setdefault(key, []).append(Said(rank, line, row))
                row += 1
        self._peers = peers
        self._divisors = [
            divisor if divisor is not None else len({peers[other] for other in _holders(structures, rank)})
            for rank, divisor in enumerate(divisors)
        ]
        self.said = [_sorted(lines) for lines in said.values()]
        self.entries = [_entry(lines) for lines in self.said]
        outputs = {
            (entry.path, entry.call, entry.role): index
            for index, entry in enumerate(self.entries)
            if entry.role in _OF_OUTPUTS
        }
        self._beside = {
            index: outputs[path, call, other]
            for (path, call, role), index in outputs.items()
            for other in _OF_OUTPUTS
            if other is not role and (path, call, other) in outputs
        }
        """Output → its gradient, and the other way round."""
        self.optimizers = [lines[0].line.optimizer for lines in self.said]
        self.answers_for: list[set[str]] = [set() for _ in structures]
        """For each rank the parameters of which it holds a piece that no lower rank holds."""
        self.known = {entry.path for entry in self.entries if entry.role is Role.PARAMETER}
        for entry, lines in zip(self.entries, self.said, strict=True):
            if entry.role is Role.PARAMETER:
                for one in _once(lines):
                    self.answers_for[one.rank].add(entry.path)
        self.table = to_arrow(entry.row() for entry in self.entries)

    def rows(self, samples: Sequence[Sampled]) -> Rows:
        """The numbers of the joint rows [entries, columns]; NaN where a row has none."""
        matrix = np.concatenate([sample.rows for sample in samples])
        first = np.cumsum([0, *(len(sample.rows) for sample in samples)])
        found = np.full((len(self.entries), len(COLUMNS)), np.nan)
        parts: list[int] = []
        starts: list[int] = []
        filled: list[int] = []
        for index, (entry, lines) in enumerate(zip(self.entries, self.said, strict=True)):
            if entry.role in _OF_OUTPUTS:
                chosen = self._parts_of_batch(index, matrix)
            else:
                chosen = [one.row for one in _once(lines)]
            chosen = [row for row in chosen if not math.isnan(matrix[row, COUNT])]
            if chosen:
                filled.append(index)
                starts.append(len(parts))
                parts += chosen
        if parts:
            chosen_rows = matrix[parts]
            for number, column in enumerate(COLUMNS):
                found[filled, number] = column.merge.reduceat(chosen_rows[:, number], starts)
        for index, (entry, lines) in enumerate(zip(self.entries, self.said, strict=True)):
            if entry.role is Role.ACTIVATION_GRADIENT:
                found[index, [TOTAL, LARGEST]] /= self._divisors[lines[0].rank]
                found[index, SQUARE] /= self._divisors[lines[0].rank] ** 2
            elif lines[0].line.piece.addends > 1:
                held = {one.rank: samples[one.rank].addends.get(one.row - first[one.rank]) for one in lines}
                self._add_up(found[index], lines, held)
        self._move_clipped(found)
        return found

    def _parts_of_batch(self, index: int, matrix: Rows) -> list[int]:
        """Of each group of tensor-parallel peers its shards, or one of its copies."""
        chosen: list[int] = []
        beside = self._by_peers(self._beside[index]) if index in self._beside else {}
        for peers, rows in self._by_peers(index).items():
            copies = len(rows) > 1 and all(_are_copies(matrix[r]) for r in (rows, beside.get(peers, rows)))
            chosen += rows[:1] if copies else rows
        return chosen

    def _by_peers(self, index: int) -> dict[tuple[int, ...], list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for one in self.said[index]:
            groups.setdefault(self._peers[one.rank], []).append(one.row)
        return groups

    def _add_up(self, row: Rows, lines: Sequence[Said], held: Mapping[int, Vector | None]) -> None:
        """Moments of a gradient of which ranks hold addends; they stand for those of the addends."""
        pieces: dict[int, dict[int, Vector]] = {}
        for one in lines:
            vector = held[one.rank]
            if vector is not None:
                pieces.setdefault(one.line.piece.number, {}).setdefault(one.line.piece.addend, vector)
        if not pieces or any(len(one) < lines[0].line.piece.addends for one in pieces.values()):
            row[:] = np.nan
            return
        sums = [
            np.sum([v.astype(np.float64) for v in addends.values()], axis=0) for addends in pieces.values()
        ]
        before, after = np.concatenate(sums, axis=1)
        finite = before[np.isfinite(before)]
        row[COUNT], row[NONFINITE] = len(before), len(before) - len(finite)
        row[TOTAL], row[SQUARE] = finite.sum(), finite @ finite
        row[LARGEST] = np.abs(finite).max(initial=0.0)
        row[CLIPPED] = after @ after

    def _move_clipped(self, found: Rows) -> None:
        """Norms after clipping stand with the parameter; those of added-up gradients came with these."""
        of = {entry.path: i for i, entry in enumerate(self.entries) if entry.role is Role.PARAMETER}
        for index, (entry, lines) in enumerate(zip(self.entries, self.said, strict=True)):
            if entry.role is Role.PARAMETER_GRADIENT and lines[0].line.piece.addends > 1:
                found[of[entry.path], CLIPPED] = found[index, CLIPPED]


@final
class Merger:
    """Keeps what ranks have said before, and joins what they say now."""

    def __init__(self, size: int) -> None:
        self._structures: list[dict[int, Structure]] = [{} for _ in range(size)]
        self._joints: dict[tuple[int, ...], Joint] = {}
        self._newest: Joint | None = None

    def hear(self, messages: Sequence[Message]) -> None:
        """Take note of new structures.

        Raises:
            RanksDisagreeError: The ranks speak of different steps.
        """
        spoken_of = {message.steps for message in messages}
        if len(spoken_of) > 1 or len({tuple(s.step for s in m.samples) for m in messages}) > 1:
            steps = "; ".join(
                f"rank {rank}: steps {m.steps[0]} to {m.steps[1]}, {len(m.samples)} of them sampled"
                for rank, m in enumerate(messages)
            )
            raise RanksDisagreeError(
                f"the ranks do not take the same steps: {steps}. "
                "evenflow.watch needs the same models, optimizers and budget on every rank"
            )
        for known, message in zip(self._structures, messages, strict=True):
            known.update(message.structures)
        for samples in zip(*(message.samples for message in messages), strict=True):
            self._newest = self._joint(samples, messages)

    def counted(self, rank: int) -> tuple[set[str], set[str]]:
        """The parameters that a rank is to count, and all of which it is known who counts them."""
        if self._newest is None:
            return set(), set()
        return self._newest.answers_for[rank], self._newest.known

    def tables(self, messages: Sequence[Message]) -> Iterator[tuple[str, pa.Table]]:
        """The tables of the steps that the messages are about."""
        events = list(_events(messages))
        scalars = [*_figures(messages), *self._norms_after(messages)]
        for samples in zip(*(message.samples for message in messages), strict=True):
            joint = self._joint(samples, messages)
            step, rows = samples[0].step, joint.rows(samples)
            yield "flow", _flow(step, joint, rows)
            scalars += [(step, name, value) for name, value in _norms_before(joint, rows)]
            parameters = [(step, path, name, value) for path, name, value in _of_parameters(joint, rows)]
            if parameters:
                yield "parameters", _table("parameters", parameters)
            scalars += [(step, name, value) for name, value in _norms_of_sums(joint, rows)]
            found, figures = outliers(samples)
            events += [(step, "rank_outlier", text) for text in found]
            scalars += [(step, name, value) for name, value in figures.items()]
        if events:
            yield "events", _table("events", events)
        if scalars:
            yield "scalars", _table("scalars", scalars)

    def _joint(self, samples: Sequence[Sampled], messages: Sequence[Message]) -> Joint:
        key = tuple(sample.structure for sample in samples)
        if key not in self._joints:
            if len(self._joints) > _MOST_JOINTS:
                self._joints.clear()
            structures = [
                known[sample.structure] for known, sample in zip(self._structures, samples, strict=True)
            ]
            self._joints[key] = Joint(structures, [m.peers for m in messages], [m.divisor for m in messages])
        return self._joints[key]

    def _norms_after(self, messages: Sequence[Message]) -> Iterator[tuple[int, str, float]]:
        """Norms of all gradients as optimizers got them, where every rank that has a say was heard."""
        found: dict[tuple[int, str], dict[int, float]] = {}
        for rank, message in enumerate(messages):
            for step, optimizer, square in message.squares:
                found.setdefault((step, optimizer), {})[rank] = square
        for (step, optimizer), squares in found.items():
            if self._newest is not None and self._speakers(optimizer) <= squares.keys():
                yield (
                    step,
                    _named("gradient_norm_after_clipping", optimizer),
                    math.sqrt(sum(squares.values())),
                )

    def _speakers(self, optimizer: str) -> set[int]:
        """The ranks that answer for a parameter of an optimizer that has a gradient."""
        joint = self._newest
        assert joint is not None
        return {
            one.rank
            for entry, name, lines in zip(joint.entries, joint.optimizers, joint.said, strict=True)
            if entry.role is Role.PARAMETER_GRADIENT and entry.status is Status.OK and name == optimizer
            for one in _once(lines)
            if one.line.entry.status is Status.OK
        }


def _sorted(lines: list[Said]) -> list[Said]:
    """In an order in which floating sums come out the same on every run: by rank."""
    return sorted(lines, key=lambda one: one.rank)


def _entry(lines: Sequence[Said]) -> Entry:
    """What the joint row says: as the lowest rank has it, or one to which a gradient came."""
    return next((one.line.entry for one in lines if one.line.entry.status is Status.OK), lines[0].line.entry)


def _once(lines: Sequence[Said]) -> list[Said]:
    """Each piece once: of those who hold it, the lowest rank."""
    first: dict[tuple[int, int], Said] = {}
    for one in lines:
        first.setdefault((one.line.piece.number, one.line.piece.addend), one)
    return list(first.values())


def _holders(structures: Sequence[Structure], rank: int) -> list[int]:
    """The ranks that hold parameters of the same names: the same model, or parts of it."""
    names = [
        frozenset(line.entry.path for line in structure if line.entry.role is Role.PARAMETER)
        for structure in structures
    ]
    return [other for other, held in enumerate(names) if held == names[rank]]


def _are_copies(rows: Rows) -> bool:
    """Whether these are the moments of copies of one tensor; what did not come contradicts nothing."""
    first = rows[0]
    scale = np.array(
        [1.0, math.sqrt(max(first[COUNT] * first[SQUARE], 0.0)), first[SQUARE], first[LARGEST], 1.0]
    )
    columns = [COUNT, TOTAL, SQUARE, LARGEST, NONFINITE]
    far = np.abs(rows[1:][:, columns] - first[columns]) > _ALIKE * scale * [0, 1, 1, 1, 0]
    return not bool(far.any())


def _figures(messages: Sequence[Message]) -> Iterator[tuple[int, str, float]]:
    """The mean over the ranks that have a figure."""
    found: dict[tuple[int, str], list[float]] = {}
    for message in messages:
        for step, name, value in message.figures:
            found.setdefault((step, name), []).append(value)
    for (step, name), values in found.items():
        yield step, name, sum(values) / len(values)


def _events(messages: Sequence[Message]) -> Iterator[tuple[int, str, str]]:
    """What all ranks tell is told once; what some tell, with their names."""
    told = [Counter(message.events) for message in messages]
    for event in dict.fromkeys(event for one in told for event in one):
        ranks = [rank for rank, one in enumerate(told) if event in one]
        step, kind, text = event
        if len(ranks) == len(messages) or kind == "cost":
            if kind != "cost" or ranks[0] == 0:
                yield event
        else:
            yield step, kind, f"Rank {', '.join(map(str, ranks))}: {text}"


def _norms_before(joint: Joint, rows: Rows) -> Iterator[tuple[str, float]]:
    """Norms of all gradients before clipping, optimizer by optimizer."""
    squares: dict[str, list[float]] = {}
    for entry, optimizer, row in zip(joint.entries, joint.optimizers, rows, strict=True):
        if entry.role is Role.PARAMETER_GRADIENT and not math.isnan(row[COUNT]):
            squares.setdefault(optimizer, []).append(math.nan if row[NONFINITE] else row[SQUARE])
    for optimizer, found in squares.items():
        yield _named("gradient_norm_before_clipping", optimizer), math.sqrt(math.fsum(found))


def _norms_of_sums(joint: Joint, rows: Rows) -> Iterator[tuple[str, float]]:
    """Norms after clipping of the optimizers of which no rank can tell its share: some gradients are sums."""
    sums = {
        optimizer
        for optimizer, lines in zip(joint.optimizers, joint.said, strict=True)
        if any(one.line.piece.addends > 1 for one in lines)
    }
    for optimizer in sums:
        squares = [
            row[CLIPPED]
            for entry, name, row in zip(joint.entries, joint.optimizers, rows, strict=True)
            if entry.role is Role.PARAMETER and name == optimizer
        ]
        yield _named("gradient_norm_after_clipping", optimizer), math.sqrt(np.nansum(squares))


def _of_parameters(joint: Joint, rows: Rows) -> Iterator[tuple[str, str, float]]:
    """Figures of single parameters: path, name, value."""
    for entry, row in zip(joint.entries, rows, strict=True):
        if entry.role is Role.PARAMETER:
            count = max(row[COUNT], 1.0)
            for name, value in (
                ("gradient_norm_after_clipping", math.sqrt(row[CLIPPED])),
                ("second_moment_mean", row[SECOND] / count),
                ("lost_update_fraction", row[LOST] / count),
            ):
                if not math.isnan(value):
                    yield entry.path, name, value


def _flow(step: int, joint: Joint, rows: Rows) -> pa.Table:
    size, total, square, largest, nonfinite = rows[:, : NONFINITE + 1].T
    finite = np.maximum(size - nonfinite, 1.0)
    columns = {
        "count": size,
        "mean": total / finite,
        "mean_square": square / finite,
        "abs_max": largest,
        "nonfinite_count": nonfinite,
        "dead_fraction": rows[:, DEAD],
        "saturated_fraction": rows[:, SATURATED] / np.maximum(size, 1.0),
    }
    table = joint.table
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        array = pa.array(values, mask=np.isnan(values)).cast(table.schema.field(index).type)
        table = table.set_column(index, name, array)
    steps = pa.array(np.full(len(table), step, np.int64))
    return table.add_column(0, "step", steps).cast(TABLES["flow"])


def _named(figure: str, optimizer: str) -> str:
    return f"{figure}/{optimizer}" if optimizer else figure


def _table(name: str, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    return pa.table(columns, names=TABLES[name].names).cast(TABLES[name])
