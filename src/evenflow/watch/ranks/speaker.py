"""From the steps that a rank has seen to the message that it sends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TypeAlias, final

import numpy as np
from torch import Tensor

from evenflow.flow import Role
from evenflow.watch.layout import Layout, layout_of
from evenflow.watch.moments import Rows
from evenflow.watch.ranks.message import (
    CLIPPED,
    COLUMNS,
    COUNT,
    LARGEST,
    LOST,
    NONFINITE,
    SATURATED,
    SECOND,
    SQUARE,
    TOTAL,
    Backward,
    Line,
    Message,
    Sampled,
    Structure,
    Vector,
)  # fmt: skip
from evenflow.watch.ranks.placement import WHOLE, Piece
from evenflow.watch.record import parameter_figures
from evenflow.watch.sample import Sample, Step

_Norms: TypeAlias = tuple[int, str, tuple[tuple[str, ...], Tensor]]
"""Step, optimizer, and parameters with the norms of their gradients."""
_MOST_STRUCTURES = 256
"""Structures that are remembered; batches of ever new shapes would make ever new ones."""


@final
class Speaker:
    """What this rank says.

    Args:
        peers: Ranks that see the same batch as this one.
        divisor: By what sums of gradients are divided; None for the number of summands.
    """

    def __init__(self, peers: tuple[int, ...], divisor: float | None) -> None:
        self._peers = peers
        self._divisor = divisor
        self._known: dict[tuple[object, ...], tuple[int, Layout, Structure]] = {}
        self._count = 0
        self._norms: list[_Norms] = []

    def message(self, steps: Sequence[Step], wait: int, counted: Set[str], known: Set[str]) -> Message:
        """What is to be said of some steps.

        Args:
            steps: The steps, one after the other.
            wait: In how many steps this rank can afford another sample.
            counted: The parameters of which this rank counts the gradient.
            known: All parameters of which it is known who counts them; a step with others
                waits for the next message.
        """
        self._norms += [(step.number, *one) for step in steps for one in step.norms.items()]
        waiting, self._norms = self._norms, []
        ready: list[_Norms] = []
        for one in waiting:
            (ready if known >= set(one[2][0]) else self._norms).append(one)
        structures: dict[int, Structure] = {}
        samples = [self._sampled(step, structures) for step in steps if step.samples]
        return Message(
            steps=(steps[0].number, steps[-1].number) if steps else (-1, -1),
            wait=wait,
            peers=self._peers,
            divisor=self._divisor,
            structures=structures,
            figures=tuple(
                (step.number, name, sum(map(float, values)) / len(values))
                for step in steps
                for name, values in step.figures.items()
            ),
            squares=tuple(_squares(ready, counted)),
            events=tuple((step.number, kind, text) for step in steps for kind, text in step.events),
            samples=tuple(samples),
        )

    def _sampled(self, step: Step, new: dict[int, Structure]) -> Sampled:
        key = tuple(sample.structure() for sample in step.samples)
        if key not in self._known:
            if len(self._known) > _MOST_STRUCTURES:
                self._known.clear()
            layout = layout_of(step.samples)
            structure = tuple(_lines(layout, step.samples))
            self._known[key] = (self._count, layout, structure)
            new[self._count] = structure
            self._count += 1
        number, layout, structure = self._known[key]
        lines = {(line.entry.path, line.entry.role): index for index, line in enumerate(structure)}
        return Sampled(
            step=step.number,
            structure=number,
            rows=_rows(layout, lines, step.samples),
            backwards=tuple(one for sample in step.samples for one in _backwards(sample)),
            addends=_addends(lines, step.samples),
        )


def _lines(layout: Layout, samples: Sequence[Sample]) -> Iterator[Line]:
    of_weights: dict[str, Piece] = {}
    of_gradients: dict[str, Piece] = {}
    for sample in samples:
        for index, place in enumerate(sample.parameters.places):
            of_weights[place.name] = place.piece
            addends = sample.parameters.addends.get(index)
            of_gradients[place.name] = addends.piece if addends is not None else place.piece
    for entry, number in zip(layout.entries, layout.sample, strict=True):
        pieces = of_gradients if entry.role is Role.PARAMETER_GRADIENT else of_weights
        is_output = entry.role in (Role.ACTIVATION, Role.ACTIVATION_GRADIENT)
        piece = WHOLE if is_output else pieces.get(entry.path, WHOLE)
        yield Line(entry, samples[number].optimizer, piece)


def _rows(layout: Layout, lines: Mapping[tuple[str, Role], int], samples: Sequence[Sample]) -> Rows:
    """The numbers of each line, true to scale and sign [lines, columns]; NaN where there are none."""
    found = layout.rows(np.concatenate([sample.matrix() for sample in samples]))
    rows = np.full((len(found), len(COLUMNS)), np.nan)
    rows[:, : found.shape[1]] = found
    scale = np.where(layout.scaled, np.array([sample.scale for sample in samples])[layout.sample], 1.0)
    rows[:, TOTAL] *= layout.sign / scale
    rows[:, SQUARE] /= scale * scale
    rows[:, LARGEST] /= scale
    rows[:, SATURATED] *= rows[:, COUNT]
    for sample in samples:
        places = sample.parameters.places
        for figure, values in parameter_figures(sample):
            for index, value in values.items():
                line = lines.get((places[index].name, Role.PARAMETER))
                if line is None:
                    continue
                if figure == "gradient_norm_after_clipping":
                    rows[line, CLIPPED] = value * value
                elif figure == "second_moment_mean":
                    rows[line, SECOND] = value * math.prod(places[index].shape)
                elif rows[line, COUNT]:
                    rows[line, LOST] = value * rows[line, COUNT]
    return rows


def _addends(lines: Mapping[tuple[str, Role], int], samples: Sequence[Sample]) -> dict[int, Vector]:
    found = {}
    for sample in samples:
        for index, (_, before, after) in sample.parameters.addends.items():
            line = lines.get((sample.parameters.places[index].name, Role.PARAMETER_GRADIENT))
            if line is not None:
                pair = [_vector(before) / sample.scale, _vector(after) / sample.remaining]
                found[line] = np.stack(pair).astype(np.float32)
    return found


def _vector(tensor: Tensor) -> Vector:
    vector: Vector = tensor.detach().reshape(-1).float().cpu().numpy()
    return vector


def _backwards(sample: Sample) -> Iterator[Backward]:
    for one in sample.local:
        rows = one.rows()
        if len(rows):
            norm = math.sqrt(math.fsum(rows[:, SQUARE])) / sample.scale
            bad = int(rows[:, NONFINITE].sum())
            worst = one.first_bad() if bad else one.names[int(rows[:, SQUARE].argmax())]
            yield Backward(sample.optimizer, norm, bad, worst)


def _squares(steps: Sequence[_Norms], counted: Set[str]) -> Iterator[tuple[int, str, float]]:
    for step, optimizer, (names, norms) in steps:
        found = [norm for name, norm in zip(names, norms.tolist(), strict=True) if name in counted]
        if found:
            yield step, optimizer, math.fsum(norm * norm for norm in found)
