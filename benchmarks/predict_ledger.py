"""Families scored in several processes, each written down as it ends."""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import torch
from benchmarks.predict_models import families
from benchmarks.predict_score import Case, Score, score

from evenflow.parallel import Workers


@lru_cache(maxsize=1)
def cases() -> dict[str, Case]:
    """All families by name."""
    return {case.name: case for case in families()}


def measured(name: str, seeds: int, more: int = 0) -> Score | str:
    """One family; the reason if it failed, for the others are measured all the same.

    Args:
        name: Of the family.
        seeds: How many.
        more: How many instead for a family that is out: the truth's own error falls with their root.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        found = score(cases()[name], seeds)
        return score(cases()[name], more) if more > seeds and "OUT" in found.verdicts else found
    except Exception:
        return traceback.format_exc(limit=-1).splitlines()[-1]


def written(file: Path) -> dict[str, Score]:
    """What a file has, by family."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    found = [Score.from_dict(json.loads(line)) for line in lines]
    return {one.name: one for one in found}


def scores(
    names: list[str], seeds: int, more: int, jobs: int, file: Path | None
) -> Iterator[tuple[str, Score | str]]:
    """Measure families; what ends is written down at once."""
    results = Workers(jobs=jobs).map(partial(measured, seeds=seeds, more=more), names)
    for name, found in zip(names, results, strict=True):
        if file is not None and isinstance(found, Score):
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(found.as_dict()) + "\n")
        yield name, found
