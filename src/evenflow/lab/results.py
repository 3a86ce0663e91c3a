"""Running experiments, and their results as JSON or as a stored run.

The JSON holds everything that a page shows, so a page can be made from it
later, elsewhere, without PyTorch. A stored run holds the same in its metadata,
every number as a scalar with the seed as its step, and the verdicts as events.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from evenflow import __version__
from evenflow.lab.experiment import Experiment, Outcome, Track, silently
from evenflow.store import RunWriter

FORMAT = 1
"""Version of the JSON; it grows when a reader of the old one would stumble."""


@dataclass(frozen=True, slots=True)
class Result:
    """One experiment that was run.

    Attributes:
        experiment: With its settings.
        outcome: What it found.
        seconds: Wall-clock time that it took.
        processor_seconds: Time of a processor that it took, which does not depend on what else runs.
    """

    experiment: Experiment
    outcome: Outcome
    seconds: float
    processor_seconds: float


def run(experiment: Experiment, track: Track = silently) -> Result:
    """Run one experiment."""
    began, worked = time.perf_counter(), time.process_time()
    outcome = experiment.run(track)
    return Result(experiment, outcome, time.perf_counter() - began, time.process_time() - worked)


def store(result: Result, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Keep a result as a run that :func:`evenflow.open_run` opens.

    Args:
        result: What to keep.
        path: A folder, or a URL that fsspec understands.
        overwrite: Whether a run that is already there may be replaced.

    Raises:
        StoreError: There is a run already, or the place cannot be written to.
    """
    comparisons = result.outcome.comparisons
    samples = [(seed, c.quantity, x) for c in comparisons for seed, x in enumerate(c.samples)]
    steps, names, values = zip(*samples, strict=True) if samples else ((), (), ())
    verdicts = [
        f"{c.verdict}: {c.quantity}: expected {c.expected.text}, measured {c.text}" for c in comparisons
    ]
    writer = RunWriter(path, {"experiment": _plain(_record(result))}, overwrite=overwrite)
    writer.add("scalars", pa.table({"step": steps, "name": pa.array(names, pa.string()), "value": values}))
    zeros = [0] * len(verdicts)
    writer.add("events", pa.table({"step": zeros, "kind": ["verdict"] * len(verdicts), "text": verdicts}))
    writer.close()


def document(results: list[Result]) -> dict[str, Any]:
    """All results as values that JSON knows; infinite numbers as text, NaN as null."""
    record: dict[str, Any] = _plain(
        {
            "format": FORMAT,
            "evenflow": __version__,
            "experiments": [_record(result) for result in results],
        }
    )
    return record


def _record(result: Result) -> dict[str, Any]:
    kind, outcome = type(result.experiment), result.outcome
    return {
        "name": kind.name(),
        "title": kind.title,
        "question": kind.question,
        "expectation": kind.expectation,
        "settings": dataclasses.asdict(result.experiment),
        "seconds": round(result.seconds, 2),
        "processor_seconds": round(result.processor_seconds, 2),
        "verdict": outcome.verdict,
        "comparisons": [
            dataclasses.asdict(comparison)
            | {"mean": comparison.mean, "interval": comparison.interval, "verdict": comparison.verdict}
            for comparison in outcome.comparisons
        ],
        "pictures": [
            {"kind": type(picture).__name__} | dataclasses.asdict(picture) for picture in outcome.pictures
        ],
        "notes": outcome.notes,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return str(value) if isinstance(value, str) else value
