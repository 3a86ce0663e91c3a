"""How many faulty programs fix repairs, at what cost, beside AutoTrainer's order of repairs in the same run.

    python benchmarks/fix.py --json FILE            all programs of the corpus, faulty and healthy
    python benchmarks/fix.py --json FILE --resume   go on after an interruption
    python benchmarks/fix.py --origin twin control  our own faulty twins and healthy controls
    python benchmarks/fix.py --origin fresh         programs that were written blind
    python benchmarks/fix.py --origin unseen        a second set of these
    python benchmarks/fix.py --only relu gan        programs of such a name or kind
    python benchmarks/fix.py --show --json FILE     print the table of a file again
    python benchmarks/fix.py --reference            only what published fixes do, with no search
    python benchmarks/fix.py --jobs 2               two processes

How long all of it takes at most is printed first, in processor time. FILE gets one line per
program as soon as it is done, so that an interruption loses only the program at work;
--resume goes on with it, and runs anew what had another number of steps.

What is trained is frozen (abridged.py), and a search ends after as many steps of trials as
15 trainings of the program have, or 1000 steps if that is more, with what it has found so
far: a slow or busy host gives the same results as a fast one. Against programs that hang,
--hang SECONDS of processor time bounds each search and each whole training. If a training of
the program as it is, or with a published fix, does not end in that, the program is not
judged and is left out of all shares; one with fix's patch or in AutoTrainer's order counts
as one that failed.

A program counts as *repaired* if, trained for its own number of steps with the patch,
its metric comes within 2 points (.02) of the reference: the best of its published
fixes (accepted.py), or its healthy twin, after as many steps. Where neither can be
run, or neither is 2 points better than the program as it is, it is the best metric
reached in this run, with any patch by either side or without one. So a program that nothing
helps is its own reference: any change that does no harm counts as a repair there, and
leaving it alone does not. Such programs are therefore counted apart as well, with how many
of them each side made worse; what remains are those that there is something to gain on.
Programs that check calls healthy are not touched, and count as not repaired. GANs have no
metric of their own, and get one from likeness.py.

*Cost* of a trial: its steps over those of the program's own training. *Cost* of the
search: its processor time over that of the training, check and all trials included.

AutoTrainer's order is implemented over the same edits: each repair is a whole
training, from the first until one is within 2 points of the reference or all are
tried. Its metric is the best of them.

References:
    X. Zhang et al., "AUTOTRAINER: an automatic DNN training problem detection and
    repair system", ICSE 2021, table 2: the order of its solutions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from benchmarks import abridged
from benchmarks.accepted import TWINS, accepted, published
from benchmarks.diagnosis.controls import controls
from benchmarks.diagnosis.fresh import FRESH
from benchmarks.diagnosis.subject import Origin, Subject
from benchmarks.diagnosis.twins import twins
from benchmarks.diagnosis.unseen import UNSEEN
from benchmarks.likeness import with_likeness
from benchmarks.limits import at_most
from rich.console import Console
from rich.progress import track
from rich.table import Table

import evenflow as ef
from evenflow.fix.course import Course, train
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

ORIGINS = tuple(one for one in get_args(Origin) if one != "matrix")
"""The matrix's programs have no accepted fixes: what was injected there is known instead."""
POINTS = 0.02
TRAININGS = 15
"""Length of a search, in trainings of the program."""
LEAST = 1000
"""Steps that a search may take even so: in short programs a trial is the whole training."""
CHECK = 2
"""Trainings that a check costs about: it watches one, and judges."""
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
    """What came of one program. Metrics are those of whole trainings; None: it broke or took too long."""

    name: str
    origin: str
    faulty: bool
    healthy: bool = False
    steps: int = 0
    before: float | None = None
    after: float | None = None
    patch: str = ""
    edits: int = 0
    trial_steps: int = 0
    search_steps: int = 0
    search_seconds: float = 0.0
    training_seconds: float = 0.0
    interrupted: bool = False
    accepted: float | None = None
    peer: float | None = None
    peer_trainings: int = 0
    cut: bool = False
    error: str = ""

    @property
    def reference(self) -> float:
        """The metric to reach; infinite if none is known."""
        if self.accepted is not None and not self.unhelped:
            return self.accepted
        return max((x for x in (self.after, self.peer, self.before) if x is not None), default=math.inf)

    @property
    def unhelped(self) -> bool:
        """Whether its published fix does nothing for it within these steps."""
        return self.accepted is not None and self.before is not None and self.accepted <= self.before + POINTS

    @property
    def hopeless(self) -> bool:
        """Whether nothing that is known, nor anything tried in this run, makes it 2 points better."""
        return self.reaches(self.before)

    def reaches(self, metric: float | None) -> bool:
        """Whether a metric is within two points of the reference."""
        return metric is not None and metric >= self.reference - POINTS


class Allowance:
    """Shows nothing, counts the steps of trials, and ends the search when they are spent.

    It is what ``fix`` tells of its progress: trials come as the courses that they took.

    Attributes:
        spent: Steps so far.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.spent = steps, 0

    def __call__(self, title: str, items: Iterable[Any], total: int) -> Iterator[Any]:
        """Pass the items on."""
        source = iter(items)
        for _ in range(total):
            if self.spent >= self.steps:
                raise KeyboardInterrupt  # as a person would, who gets what was found so far
            item = next(source)
            self.spent += len(item.losses) if isinstance(item, Course) else 0
            yield item


def repair(subject_name: str, hang: float, search: bool = True) -> Repair:
    """Fix one program; train it with the patch, with published fixes and by AutoTrainer's order."""
    torch.set_num_threads(1)
    subjects = {one.name: one for one in everything()}
    subject = subjects[subject_name]
    program, seed = with_likeness(subject.program()), subject.seeds[0]
    result = Repair(subject.name, subject.origin, subject.faulty, steps=program.steps)
    best = _searched(program, result, hang) if search else None
    if not subject.faulty:
        return result

    def whole(program: ef.Program) -> float | None:
        course = _whole(program, seed, hang)
        return None if course is None else course.metric

    def known(program: ef.Program) -> float | None:
        """As ``whole``; what does not end makes the program one that cannot be judged."""
        course = _whole(program, seed, hang)
        result.cut = result.cut or course is None
        return None if course is None else course.metric

    plain = _whole(program, seed, hang)
    if plain is None:
        result.cut = True
    else:
        result.before, result.training_seconds = plain.metric, plain.seconds
    if best is not None:
        result.after = _patched(best, program, whole)
    goals = [_patched(patch, program, known) for patch in accepted(subject.name, program, seed)]
    if subject.name in TWINS:
        goals.append(known(replace(subjects[TWINS[subject.name]].program(), steps=program.steps)))
    fixed = FRESH.repaired(subject.name) or UNSEEN.repaired(subject.name)
    if fixed is not None:
        goals.append(known(replace(fixed, steps=program.steps)))
    if subject.origin == "twin":
        control = subjects.get(subject.name.partition("+")[0])
        goals.append(None if control is None else control.threshold)
    result.accepted = max((goal for goal in goals if goal is not None), default=None)
    for name in _order(subject) if search else ():
        metric = _patched(REPAIRS[name], program, whole)
        result.peer_trainings += 1
        if metric is not None and (result.peer is None or metric > result.peer):
            result.peer = metric
        if result.reaches(result.peer):
            break
    return result


def _searched(program: ef.Program, result: Repair, hang: float) -> Patch | None:
    """The patch that fix finds best; how it went is put into the result."""
    began, allowance = time.process_time(), Allowance(max(LEAST, TRAININGS * program.steps))
    best = None
    try:
        with at_most(hang, KeyboardInterrupt):
            outcome = ef.fix(program, track=allowance)
    except KeyboardInterrupt:
        result.interrupted, result.error = True, f"its check took more than {hang:.0f} s"
    except Exception as error:  # told in the table, and the program counts as not repaired
        result.error = f"{type(error).__name__}: {error}"
    else:
        result.healthy, result.interrupted = outcome.report.healthy, outcome.interrupted
        result.trial_steps = outcome.trials[0].steps if outcome.trials else 0
        if outcome.patches:
            best = outcome.patches[0].patch
            result.patch, result.edits = best.describe(), best.size
    result.search_steps, result.search_seconds = allowance.spent, time.process_time() - began
    return best


def _order(subject: Subject) -> Sequence[str]:
    """AutoTrainer's repairs for its symptoms."""
    return tuple(dict.fromkeys(name for symptom in subject.symptoms for name in ORDER.get(symptom, ())))


def noted(subject_name: str, hang: float, search: bool, file: Path | None) -> Repair:
    """Repair one program, and add it to the file at once, from whichever process."""
    result = repair(subject_name, hang, search)
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
    return result


def _patched(patch: Patch, program: ef.Program, whole: Callable[[ef.Program], float | None]) -> float | None:
    try:
        return whole(patch.program(program))
    except ef.EvenflowError:  # a repair that does not fit the program is one that fails
        return None


def _whole(program: ef.Program, seed: int, limit: float) -> Course | None:
    """The whole training; None if it does not end in time."""
    try:
        with at_most(limit, KeyboardInterrupt):
            return train(program, program.steps, seed)
    except KeyboardInterrupt:
        return None
    except Exception:  # one that raises has no metric
        return Course((), None, 0.0)


def everything() -> list[Subject]:
    """All programs."""
    return [*abridged.subjects(), *twins(), *controls(), *FRESH.subjects(), *UNSEEN.subjects()]


def _estimate(subjects: Sequence[Subject], search: bool) -> float:
    """Processor time at most, in seconds, on the host where the lengths were measured."""
    known, total = abridged.lengths(), 0.0
    for one in subjects:
        trainings = 0 if not one.faulty else 1 + published(one.name)
        if search:
            trainings += CHECK + (TRAININGS + 1 + len(_order(one)) if one.faulty else 0)
        total += trainings * (known[one.name].seconds if one.name in known else abridged.SECONDS)
    return total


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--origin", nargs="*", default=["corpus"], choices=ORIGINS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--hang", type=float, default=900.0)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--show", action="store_true")
    chosen = parser.parse_args()
    if (chosen.resume or chosen.show) and chosen.json is None:
        parser.error("--resume and --show want the file of before: --json FILE.")
    results: list[Repair] = []
    if chosen.json is not None and chosen.json.exists():
        if chosen.resume or chosen.show:
            results = _read(chosen.json)
        else:
            parser.error(f"{chosen.json} is there already. Add --resume to go on with it, or remove it.")
    done = {one.name for one in results}
    left = [
        one
        for one in everything()
        if (not chosen.only or any(word in one.name or word == one.kind for word in chosen.only))
        and one.origin in chosen.origin
        and one.name not in done
        and (one.faulty or not chosen.reference)
    ]
    if not chosen.show:
        search = not chosen.reference
        console = Console(stderr=True)
        minutes = _estimate(left, search) / 60
        console.print(f"{len(left)} programs, at most about {minutes:.0f} min of processor time")
        work = partial(noted, hang=chosen.hang, search=search, file=chosen.json)
        found = Workers(jobs=chosen.jobs).map(work, [one.name for one in left])
        with contextlib.suppress(KeyboardInterrupt):  # what was done is shown
            for one in track(found, total=len(left), console=console, description="programs"):
                results.append(one)
    _report(results, Console(width=max(140, Console().width)))


def _read(file: Path) -> list[Repair]:
    """The results of before, but for those of programs that had another number of steps then."""
    known = abridged.lengths()
    found = [Repair(**json.loads(line)) for line in file.read_text().splitlines()]
    return [one for one in found if one.name not in known or one.steps == known[one.name].steps]


def _report(results: list[Repair], console: Console) -> None:
    ill = [one for one in results if one.faulty]
    table = Table(box=None, header_style="dim")
    for name in (
        "program",
        "before",
        "fix",
        "AutoTrainer's order",
        "to reach",
        "edits",
        "search, s",
        "patch",
    ):
        table.add_column(name, overflow="fold")
    for one in ill:
        table.add_row(
            one.name,
            _number(one.before),
            ("✓ " if one.reaches(one.after) else "✗ ") + _number(one.after),
            ("✓ " if one.reaches(one.peer) else "✗ ") + f"{_number(one.peer)} ({one.peer_trainings})",
            _number(one.reference)
            + ("" if one.accepted is not None and not one.unhelped else " (best seen)"),
            str(one.edits or ""),
            f"{one.search_seconds:.0f}" + ("…" if one.interrupted else ""),
            one.error or ("called healthy" if one.healthy else one.patch[:70]),
        )
    console.print(table)
    if ill:
        judged = [one for one in ill if not one.cut]
        repaired = [one for one in judged if one.reaches(one.after)]
        peers = [one for one in judged if one.reaches(one.peer)]
        console.print(f"repaired by fix: {_share(len(repaired), len(judged))}")
        console.print(f"repaired by AutoTrainer's order: {_share(len(peers), len(judged))}")
        gaining = [one for one in judged if not one.hopeless]
        console.print(
            f"on the {len(gaining)} with something to gain: "
            f"fix {_share(sum(one in gaining for one in repaired), len(gaining))}, "
            f"AutoTrainer's order {_share(sum(one in gaining for one in peers), len(gaining))}"
        )
        hopeless = [one for one in judged if one.hopeless]
        harmed = [one.name for one in hopeless if one.patch and not one.reaches(one.after)]
        console.print(
            f"on the {len(hopeless)} that nothing helps: left as they are by fix "
            f"{sum(not one.patch for one in hopeless)}, made worse {len(harmed)} {', '.join(harmed)}; "
            f"made worse by AutoTrainer's order {sum(not one.reaches(one.peer) for one in hopeless)}"
        )
        if idle := [one.name for one in judged if one.accepted is None or one.unhelped]:
            console.print(
                f"no published fix helps within these steps, or none can be written as edits ({len(idle)}): "
                f"{', '.join(idle)}"
            )
        if cut := [one.name for one in ill if one.cut]:
            console.print(f"not judged, for a whole training did not end: {', '.join(cut)}")
        trials = [one.trial_steps / one.steps for one in ill if one.trial_steps]
        searches = [one.search_seconds / one.training_seconds for one in ill if one.training_seconds]
        console.print(
            f"median trial: {_median(trials):.0%} of the training's steps; "
            f"median search, check included: {_median(searches):.1f} trainings; "
            f"median edits of repairs: {_median([one.edits for one in repaired])}"
        )
    healthy = [one for one in results if not one.faulty]
    if healthy:
        touched = [one.name for one in healthy if one.patch or one.error]
        console.print(f"healthy programs changed: {_share(len(touched), len(healthy))} {', '.join(touched)}")


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _number(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _median(values: list[Any]) -> float:
    return statistics.median(values) if values else math.nan


if __name__ == "__main__":
    from benchmarks import fix  # by its name other processes can import it

    fix.main()
