"""One program after another by every tool, in one process or several, each result written as it comes.

A *job* is a program with a seed. Its record is one line of JSON, so that a run
that was interrupted is taken up where it ended.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from benchmarks.diagnosis import kept
from benchmarks.diagnosis.case import cases
from benchmarks.diagnosis.controls import controls
from benchmarks.diagnosis.fresh import FRESH
from benchmarks.diagnosis.matrix import matrix
from benchmarks.diagnosis.peers import PEERS
from benchmarks.diagnosis.scoring import Outcome
from benchmarks.diagnosis.subject import Subject
from benchmarks.diagnosis.tools import Tool, Verdict, evenflow_tool, keeping, verdict_of
from benchmarks.diagnosis.twins import twins
from benchmarks.diagnosis.twins_in_kind import twins_in_kind
from benchmarks.diagnosis.unseen import UNSEEN

from evenflow.check import judged

Job = tuple[str, int]
"""Name of a program, and a seed."""
Record = dict[str, Any]
"""Of a job: ``program``, ``seed``, ``outcomes``, and ``left_out`` with the reason if it was."""


@dataclass(frozen=True, slots=True)
class Way:
    """How programs are weighed; picklable.

    Attributes:
        peers: Folder of the peers; None to leave them out.
        keep: Where to keep what evenflow saw.
        source: From where to judge what was kept, instead of training.
    """

    peers: str | None = None
    keep: Path | None = None
    source: Path | None = None


@cache
def subjects() -> dict[str, Subject]:
    """Every program there is, by name."""
    ours = (*controls(), *twins(), *twins_in_kind(), *matrix())
    return {one.name: one for one in (*cases(), *ours, *FRESH.subjects(), *UNSEEN.subjects())}


def peers(folder: str | None) -> tuple[dict[str, Tool], list[str]]:
    """The peers that can run, and why others cannot."""
    found: dict[str, Tool] = {}
    missing = []
    if folder is not None:
        if folder not in sys.path:
            sys.path.append(folder)
        for name, (module, tool) in PEERS.items():
            try:
                if module is not None:
                    importlib.import_module(module)
                found[name] = tool
            except ImportError as error:
                missing.append(f"{name} is left out: {error}. pip install --no-deps --target {folder} {name}")
    return found, missing


def records(jobs: Sequence[Job], way: Way, processes: int, ledger: Path | None) -> Iterator[Record]:
    """The record of each job, as it ends; also added to the ledger."""
    for record in _done(jobs, way, processes):
        if ledger is not None:
            with ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        yield record


def written(ledger: Path, tools: set[str]) -> dict[Job, Record]:
    """The jobs that a ledger has of all of these tools; a line that was cut off is left out."""
    found = {}
    if ledger.exists():
        for line in ledger.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["left_out"] or tools <= {one["tool"] for one in record["outcomes"]}:
                found[record["program"], record["seed"]] = record
    return found


def outcomes(record: Record, tools: set[str]) -> list[Outcome]:
    """What a record says of some tools."""
    subject = subjects()[record["program"]]
    return [Outcome.from_json(one, subject) for one in record["outcomes"] if one["tool"] in tools]


def _done(jobs: Sequence[Job], way: Way, processes: int) -> Iterator[Record]:
    if processes == 1:
        yield from (weigh(job, way) for job in jobs)
        return
    # A process that has threads cannot be forked safely, and PyTorch has some.
    # Not ProcessPoolExecutor: it may not replace a process that has done its tasks (CPython issue 115634).
    with get_context("spawn").Pool(processes, _alone, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(partial(weigh, way=way), jobs)


def _alone() -> None:
    torch.set_num_threads(1)


def weigh(job: Job, way: Way) -> Record:
    """A job by every tool."""
    _warmed_up()
    name, seed = job
    subject = subjects()[name]
    record: Record = {"program": name, "seed": seed, "left_out": None, "outcomes": []}
    try:
        seconds, metric = _bare(subject, seed) if way.source is None else _facts(subject, seed, way.source)
    except Exception as error:
        return {**record, "left_out": f"it cannot be run: {type(error).__name__}: {error}"}
    if not subject.as_claimed(metric):
        bound = f"≥ {subject.threshold}" if subject.threshold is not None else f"< {subject.ceiling}"
        if subject.threshold is None and subject.ceiling is None:
            bound = "a number"
        kind = "faulty" if subject.faulty else "healthy"
        return {**record, "left_out": f"its metric is {metric}, expected {bound} of a {kind} program"}
    if way.source is not None:
        found = [_again(subject, seed, way.source)]
    else:
        own: Tool = evenflow_tool
        if way.keep is not None:
            own = keeping(kept.folder(way.keep, name, seed), seconds, metric)
        with_tools = {"evenflow": own, **peers(way.peers)[0]}
        found = [_weigh(subject, seed, called, tool, seconds) for called, tool in with_tools.items()]
    return {**record, "outcomes": [one.as_json() for one in found]}


@cache
def _warmed_up() -> None:
    """Train something once in each process: what is slow only once is no tool's fault."""
    _bare(subjects()["logistic-zero"], 0)


def _bare(subject: Subject, seed: int) -> tuple[float, float | None]:
    """Processor seconds of the training alone, and the metric that it reaches."""
    program = subject.program()
    began = time.process_time()
    with torch.random.fork_rng(devices=[]):
        training = program.start(seed)
        unsound = 0
        for figures in training.run():
            sound = all(bool(torch.isfinite(torch.as_tensor(value))) for value in figures.values())
            unsound = 0 if sound else unsound + 1
            if unsound >= 30:
                break
        seconds = time.process_time() - began
        metric = program.metric(training.model) if program.metric is not None else None
    return seconds, metric


def _facts(subject: Subject, seed: int, source: Path) -> tuple[float, float | None]:
    known = kept.facts(kept.folder(source, subject.name, seed))
    if known is None:
        raise FileNotFoundError(f"nothing was kept of it in {source}; fill it with --keep {source}")
    return known.training_seconds, known.metric


def _weigh(subject: Subject, seed: int, name: str, tool: Tool, training_seconds: float) -> Outcome:
    """One tool on one program; what it raises is an outcome too."""
    program, error, verdict = subject.program(), None, Verdict()
    began = time.process_time()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            verdict = tool(program, seed)
    except Exception:  # a tool that fails has missed, and the benchmark goes on
        error = traceback.format_exc(limit=-2).strip().replace("\n", " | ")
    return Outcome(name, subject, seed, verdict, time.process_time() - began, training_seconds, error)


def _again(subject: Subject, seed: int, source: Path) -> Outcome:
    """What evenflow says of what was kept; its seconds are those of seeing then and of judging now."""
    place = kept.folder(source, subject.name, seed)
    known = kept.facts(place)
    assert known is not None, "weigh() has read it"
    began = time.process_time()
    verdict = verdict_of(judged(*kept.seen(place, known.roles)))
    seconds = known.seconds + time.process_time() - began
    return Outcome("evenflow", subject, seed, verdict, seconds, known.training_seconds)
