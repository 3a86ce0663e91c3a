"""How many faulty programs fix repairs, at what cost, beside AutoTrainer's order of repairs in the same run.

    python benchmarks/fix.py                       all faulty programs and the healthy controls
    python benchmarks/fix.py --origin corpus       programs of the corpus alone (twin, control)
    python benchmarks/fix.py --only relu gan       programs of such a name or kind
    python benchmarks/fix.py --jobs 2 --json FILE  in two processes; all numbers in a file

A program counts as *repaired* if, trained for its own number of steps with the patch,
its metric comes within 2 points (.02) of the reference: the best metric that any
patch tried in this run reached in a whole training, by either side, and for a faulty
twin at least what its healthy control must reach. The accepted fixes of the corpus
are texts, so they cannot be run. Programs that check calls healthy are not
touched, and count as not repaired.

*Cost* of a trial: its steps over those of the program's own training.

AutoTrainer's order is implemented over the same edits: each repair is a whole
training, from the first until one is within 2 points of the reference or all are
tried. Its metric is the best of them.

References:
    X. Zhang et al., "AUTOTRAINER: an automatic DNN training problem detection and
    repair system", ICSE 2021, table 2: the order of its solutions.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from benchmarks.diagnosis.case import cases
from benchmarks.diagnosis.controls import controls
from benchmarks.diagnosis.subject import Subject
from benchmarks.diagnosis.twins import twins
from rich.console import Console
from rich.progress import track
from rich.table import Table

import evenflow as ef
from evenflow.fix.course import train
from evenflow.parallel import Workers
from evenflow.surgery import (
    ClipGradient,
    InsertNorm,
    Patch,
    Reinitialise,
    SetLearningRate,
    SetOptimizer,
    SwapActivation,
)

POINTS = 0.02
ORDER = {
    "vanishing_gradient": ("batch", "relu", "optimizer"),
    "exploding_gradient": ("batch", "relu", "clip", "init"),
    "dead_units": ("init", "batch", "leaky", "lr"),
    "saturation": ("batch", "relu"),
    "oscillating": ("lr", "optimizer", "batch"),
    "loss_not_decreasing": ("optimizer", "lr_up", "init"),
    "non_finite": ("clip", "lr", "batch"),
}
"""Symptom → AutoTrainer's repairs in order (its "slow convergence" is loss_not_decreasing; NaN is
not among its problems, and gets those of exploding gradients)."""
REPAIRS = {
    "batch": Patch([InsertNorm("batch")]),
    "relu": Patch([SwapActivation(to="relu"), Reinitialise("he", activation="relu")]),
    "leaky": Patch([SwapActivation(to="leaky_relu")]),
    "clip": Patch([ClipGradient("norm", 1.0)]),
    "init": Patch([Reinitialise("he")]),
    "optimizer": Patch([SetOptimizer("adam", lr=1e-3)]),
    "lr": Patch([SetLearningRate(factor=0.1)]),
    "lr_up": Patch([SetLearningRate(factor=10.0)]),
}


@dataclass
class Repair:
    """What came of one program."""

    name: str
    origin: str
    causes: tuple[str, ...]
    healthy: bool = False
    steps: int = 0
    before: float | None = None
    after: float | None = None
    patch: str = ""
    edits: int = 0
    trial_share: float = math.nan
    seconds: float = 0.0
    peer: float | None = None
    peer_trainings: int = 0
    floor: float | None = None
    others: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def reference(self) -> float:
        """Best metric known."""
        known = [x for x in (self.after, self.peer, self.before, *self.others) if x is not None]
        return max(max(known, default=math.inf), self.floor if self.floor is not None else -math.inf)

    def reaches(self, metric: float | None) -> bool:
        """Whether a metric is within two points of the reference."""
        return metric is not None and metric >= self.reference - POINTS


def repair(subject_name: str) -> Repair:
    """Fix one program, and retrain it in full."""
    torch.set_num_threads(1)
    subject = next(one for one in everything() if one.name == subject_name)
    result = Repair(subject.name, subject.origin, subject.causes)
    program = subject.program()
    seed = subject.seeds[0]
    try:
        began = time.process_time()
        outcome = ef.fix(program)
        result.seconds = time.process_time() - began
    except Exception as error:  # told in the table, and the program counts as not repaired
        result.error = f"{type(error).__name__}: {error}"
        return result
    result.healthy, result.steps = outcome.report.healthy, program.steps
    result.before = train(program, program.steps, seed).metric
    if subject.origin == "twin":
        control = subject.name.partition("+")[0]
        result.floor = next((one.threshold for one in controls() if one.name == control), None)
    if outcome.trials:
        result.trial_share = outcome.trials[0].steps / program.steps
    whole = [(trial, _whole(trial.patch, program, seed)) for trial in outcome.patches[:3]]
    result.others = [metric for _, metric in whole if metric is not None]
    if whole:
        best, result.after = whole[0]
        result.patch, result.edits = best.patch.describe(), best.patch.size
    if subject.faulty:
        result.peer, result.peer_trainings = _peer(subject, program, seed, result)
    return result


def _peer(subject: Subject, program: ef.Program, seed: int, result: Repair) -> tuple[float | None, int]:
    """AutoTrainer's order: best metric, and how many whole trainings it took."""
    wanted = [name for symptom in subject.symptoms for name in ORDER.get(symptom, ())]
    best, count = None, 0
    for name in dict.fromkeys(wanted):
        metric = _whole(REPAIRS[name], program, seed)
        count += 1
        if metric is not None and (best is None or metric > best):
            best = metric
        if best is not None and result.reaches(best):
            break
    return best, count


def _whole(patch: Patch, program: ef.Program, seed: int) -> float | None:
    try:
        return train(patch.program(program), program.steps, seed).metric
    except Exception:  # a repair that does not fit the program is one that fails
        return None


def everything() -> list[Subject]:
    """All programs."""
    return [*cases(), *twins(), *controls()]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--origin", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    subjects = [
        one
        for one in everything()
        if (not chosen.only or any(word in one.name or word == one.kind for word in chosen.only))
        and (not chosen.origin or one.origin in chosen.origin)
    ]
    names = [one.name for one in subjects]
    console = Console(width=max(120, Console().width))
    results = []
    found = Workers(jobs=chosen.jobs).map(repair, names)
    for one in track(found, total=len(names), console=Console(stderr=True), description="programs"):
        results.append(one)
        if chosen.json is not None:  # what is known is kept, should the run be cut short
            chosen.json.write_text(json.dumps([asdict(each) for each in results], indent=1))
    _report(results, {one.name: one.faulty for one in subjects}, console)


def _report(results: list[Repair], faulty: dict[str, bool], console: Console) -> None:
    ill = [one for one in results if faulty[one.name]]
    table = Table(box=None, header_style="dim")
    for name in ("program", "before", "fix", "AutoTrainer's order", "reference", "edits", "s", "patch"):
        table.add_column(name)
    for one in ill:
        table.add_row(
            one.name,
            _number(one.before),
            ("✓ " if one.reaches(one.after) else "✗ ") + _number(one.after),
            ("✓ " if one.reaches(one.peer) else "✗ ") + f"{_number(one.peer)} ({one.peer_trainings})",
            _number(one.reference),
            str(one.edits or ""),
            f"{one.seconds:.0f}",
            one.error or ("called healthy" if one.healthy else one.patch[:70]),
        )
    console.print(table)
    repaired = [one for one in ill if one.reaches(one.after)]
    peer = [one for one in ill if one.reaches(one.peer)]
    healthy = [one for one in results if not faulty[one.name]]
    touched = [one.name for one in healthy if one.patch or one.error]
    if ill:
        shares = [one.trial_share for one in ill if not math.isnan(one.trial_share)]
        edits = [one.edits for one in repaired]
        console.print(f"repaired by fix: {len(repaired)} of {len(ill)} ({len(repaired) / len(ill):.0%})")
        console.print(
            f"repaired by AutoTrainer's order: {len(peer)} of {len(ill)} ({len(peer) / len(ill):.0%})"
        )
        console.print(
            f"median trial, share of the training: {_median(shares):.0%}; median edits: {_median(edits)}"
        )
    if healthy:
        console.print(f"healthy programs changed: {len(touched)} of {len(healthy)} {', '.join(touched)}")


def _number(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _median(values: list[Any]) -> float:
    return statistics.median(values) if values else math.nan


if __name__ == "__main__":
    main()
