"""From what the hooks saw to the tables of a run, in the thread that writes.

The hot path only appends to lists. Merging micro-batches, undoing the loss scale,
fetching from devices and building Arrow columns happen here, later, in the
store's thread, so that training waits for none of it.

Steps are alike. What a step's rows say besides numbers (path, shape, order, inputs …),
and which rows of which page each of them is made from, is worked out once for each
structure, as a :class:`~evenflow.watch.layout.Layout`; the numbers of a step are then a few
operations on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from evenflow.flow.arrow import to_arrow
from evenflow.store.schema import TABLES
from evenflow.watch.layout import Entry, Layout, layout_of
from evenflow.watch.moments import Rows
from evenflow.watch.sample import Sample, Step

_MOST_SITES = 1 << 16
"""Sites that are remembered; batches of ever new shapes would make ever new ones."""


@final
class Recorder:
    """Turns steps into tables."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[object, ...], _Numbered] = {}
        self._entries: dict[Entry, int] = {}
        self._table: pa.Table | None = None

    def tables(self, steps: Sequence[Step]) -> Iterator[tuple[str, pa.Table]]:
        """The rows of some steps, table by table."""
        events = [(step.number, kind, text) for step in steps for kind, text in step.events]
        if events:
            yield "events", _long("events", events)
        sampled = [_Read(step, self._numbered(step.samples), _matrix(step)) for step in steps if step.samples]
        scalars = [
            (step.number, name, _mean(values)) for step in steps for name, values in step.figures.items()
        ]
        scalars += [(one.step.number, name, norm) for one in sampled for name, norm in one.gradient_norms()]
        if scalars:
            yield "scalars", _long("scalars", scalars)
        parameters = _parameter_table(sampled)
        if parameters is not None:
            yield "parameters", parameters
        if sampled:
            yield "flow", self._flow(sampled)

    def _numbered(self, samples: Sequence[Sample]) -> _Numbered:
        """The layout of a step with these samples, and which rows of the table of sites it is about."""
        if len(self._entries) > _MOST_SITES:
            self._layouts.clear()
            self._entries.clear()
            self._table = None
        structure = tuple(sample.structure() for sample in samples)
        if structure not in self._layouts:
            layout = layout_of(samples)
            sites = [self._entries.setdefault(entry, len(self._entries)) for entry in layout.entries]
            self._layouts[structure] = _Numbered(layout, np.array(sites, np.int64))
        return self._layouts[structure]

    def _flow(self, sampled: Sequence[_Read]) -> pa.Table:
        if self._table is None or len(self._table) != len(self._entries):
            self._table = to_arrow(entry.row() for entry in self._entries)
        table = self._table.take(pa.array(np.concatenate([one.numbered.sites for one in sampled])))
        for name, values in _columns(sampled).items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, values.cast(table.schema.field(index).type))
        steps = np.repeat([one.step.number for one in sampled], [len(one.numbered.sites) for one in sampled])
        return table.add_column(0, "step", pa.array(steps)).cast(TABLES["flow"])


class _Numbered(NamedTuple):
    """A layout, with the number of each of its entries in the table of sites."""

    layout: Layout
    sites: npt.NDArray[np.int64]


class _Read(NamedTuple):
    """A step, its layout, and its moments as one matrix."""

    step: Step
    numbered: _Numbered
    matrix: Rows

    def scales(self) -> npt.NDArray[np.float64]:
        """By what the numbers of each row are too large."""
        layout = self.numbered.layout
        scales = np.array([sample.scale for sample in self.step.samples])
        return np.where(layout.scaled, scales[layout.sample], 1.0)

    def gradient_norms(self) -> Iterator[tuple[str, float]]:
        """Norm of all gradients before clipping, for each sample that has gradients."""
        for sample, rows in zip(self.step.samples, self.numbered.layout.gradients, strict=True):
            if len(rows):
                found = self.matrix[rows]
                norm = math.nan if found[:, 4].any() else math.sqrt(math.fsum(found[:, 2])) / sample.scale
                suffix = f"/{sample.optimizer}" if sample.optimizer else ""
                yield f"gradient_norm_before_clipping{suffix}", norm


def _matrix(step: Step) -> Rows:
    return np.concatenate([sample.matrix() for sample in step.samples])


def _columns(sampled: Sequence[_Read]) -> dict[str, pa.Array]:
    """The statistics of all rows, column by column; null where a row has none."""
    layouts = [one.numbered.layout for one in sampled]
    found = np.concatenate([layout.rows(one.matrix) for layout, one in zip(layouts, sampled, strict=True)])
    size, total, square, largest, nonfinite, dead, saturated = found.T
    scales = [
        np.array([sample.scale for sample in one.step.samples])[one.numbered.layout.sample] for one in sampled
    ]
    scale = np.where(np.concatenate([layout.scaled for layout in layouts]), np.concatenate(scales), 1.0)
    sign = np.concatenate([layout.sign for layout in layouts])
    finite = np.maximum(size - nonfinite, 1.0)
    columns = {
        "count": size,
        "mean": sign * total / finite / scale,
        "mean_square": square / finite / scale / scale,
        "abs_max": largest / scale,
        "nonfinite_count": nonfinite,
        "dead_fraction": dead,
        "saturated_fraction": saturated,
    }
    return {name: pa.array(values, mask=np.isnan(values)) for name, values in columns.items()}


def _parameter_table(sampled: Sequence[_Read]) -> pa.Table | None:
    """Figures of single parameters."""
    steps: list[int] = []
    paths: list[str] = []
    figures: list[str] = []
    values: list[float] = []
    for one in sampled:
        for sample in one.step.samples:
            for figure, found in parameter_figures(sample):
                steps += [one.step.number] * len(found)
                figures += [figure] * len(found)
                paths += [sample.parameters.places[index].name for index in found]
                values += found.values()
    if not values:
        return None
    return pa.table([steps, paths, figures, values], names=TABLES["parameters"].names).cast(
        TABLES["parameters"]
    )


def parameter_figures(sample: Sample) -> Iterator[tuple[str, dict[int, float]]]:
    """Name of a figure, and its value for the parameters that have it."""
    seen = sample.parameters
    if seen.clipped_norms is not None:
        norms = (seen.clipped_norms / sample.remaining).tolist()
        yield (
            "gradient_norm_after_clipping",
            {index: norms[row] for index, row in enumerate(seen.clipped_rows) if row >= 0},
        )
    if seen.second_moments is not None:
        moments = seen.second_moments.tolist()
        sizes = [math.prod(place.shape) for place in seen.places]
        yield (
            "second_moment_mean",
            {index: moments[row] / sizes[index] for index, row in enumerate(seen.second_rows) if row >= 0},
        )
    if seen.lost:
        yield "lost_update_fraction", {index: float(share) for index, share in seen.lost.items()}


def _mean(values: Sequence[float | Tensor]) -> float:
    return sum(float(value) for value in values) / len(values)


def _long(table: str, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    schema = TABLES[table]
    arrays = [pa.array(column) for column in columns]
    return pa.table(arrays, names=schema.names).cast(schema)
