"""What evenflow saw of a program, kept on disk: rules can be judged again without training.

``NAME#SEED/`` holds runs in evenflow's own format: ``training`` is the watched run,
and ``first`` (with the role's name behind it, where there are several) the first
batch as a run of one step. ``facts.json`` is written last; a folder without it was
interrupted and counts for nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from evenflow.flow import Flow, Run
from evenflow.store import RunWriter, open_run

TRAINING = "training"
_FACTS = "facts.json"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a training cost and reached.

    Attributes:
        training_seconds: Processor time of the bare training.
        seconds: That of measuring the first batch and of the training under watch.
        metric: What the program reached, if it has a metric.
        roles: Whose losses were measured on the first batch, in order.
    """

    training_seconds: float
    seconds: float
    metric: float | None
    roles: tuple[str, ...]


def folder(of: Path, name: str, seed: int) -> Path:
    """Where a program with a seed is kept."""
    return of / f"{name}#{seed}"


def fresh(place: Path) -> Path:
    """An empty folder for a program; what an interrupted attempt left is removed."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def keep(place: Path, flows: Mapping[str, Flow], facts: Facts) -> None:
    """Write the first batch and the facts beside the run, which is in :data:`TRAINING` already."""
    for role, flow in flows.items():
        about = {"source": flow.source, "metadata": flow.metadata, "notes": flow.notes}
        writer = RunWriter(_first(place, role), {"flow": about})
        rows = flow.to_arrow()
        writer.add("flow", rows.add_column(0, "step", pa.array([0] * rows.num_rows, pa.int64())))
        writer.close()
    (place / _FACTS).write_text(json.dumps(asdict(facts)), "utf-8")


def facts(place: Path) -> Facts | None:
    """What is known of a kept program; None if it is not there, or not whole."""
    try:
        return Facts(**json.loads((place / _FACTS).read_text("utf-8")))
    except FileNotFoundError:
        return None


def seen(place: Path, roles: Iterable[str]) -> tuple[dict[str, Flow], Run]:
    """The first batch by role, and the training."""
    flows = {}
    for role in roles:
        first = open_run(_first(place, role))
        about = first.metadata["flow"]
        flows[role] = Flow(first.flow(0).rows, about["source"], about["metadata"], about["notes"])
    return flows, open_run(place / TRAINING)


def _first(place: Path, role: str) -> Path:
    return place / f"first{role and '-'}{role}"
