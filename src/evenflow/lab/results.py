"""Running experiments, and their results as JSON.

The JSON holds everything that a page shows, so a page can be made from it
later, elsewhere, without PyTorch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from evenflow import __version__
from evenflow.lab.experiment import Experiment, Outcome, Track, silently

FORMAT = 1
"""Version of the JSON; it grows when a reader of the old one would stumble."""


@dataclass(frozen=True, slots=True)
class Result:
    """One experiment that was run.

    Attributes:
        experiment: With its settings.
        outcome: What it found.
        seconds: Wall-clock time that it took.
    """

    experiment: Experiment
    outcome: Outcome
    seconds: float


def run(experiment: Experiment, track: Track = silently) -> Result:
    """Run one experiment."""
    began = time.perf_counter()
    outcome = experiment.run(track)
    return Result(experiment, outcome, time.perf_counter() - began)


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
