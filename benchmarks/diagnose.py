"""How well evenflow diagnoses: real faulty and healthy programs, our own controls, and peers beside it.

    python benchmarks/diagnose.py                     all programs, evenflow alone
    python benchmarks/diagnose.py --peers DIR         torchmortem, torch-audit, AutoTrainer's rules beside it
    python benchmarks/diagnose.py --split open        the half that may be looked at
    python benchmarks/diagnose.py --only gan so-31    programs of such a name or kind
    python benchmarks/diagnose.py --misses FILE       what went wrong in the open half, and what was seen

A program is trained bare, then by each tool, from the same seed, in one thread. Times are
of the processor, so that other work on the machine does not count.
DIR is where the peers were put, apart from evenflow's own packages:

    pip install --no-deps --target DIR torchmortem==0.1.1 torch-audit==0.3.0

Half of the programs, chosen by a hash of their names, are *held out*: nobody who
writes rules looks at them, and their figures are printed beside those of the open half.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis.case import cases
from benchmarks.diagnosis.controls import controls
from benchmarks.diagnosis.peers import PEERS
from benchmarks.diagnosis.scoring import Outcome, cause_table, summary
from benchmarks.diagnosis.subject import Subject
from benchmarks.diagnosis.tools import Tool, Verdict, evenflow_tool
from benchmarks.diagnosis.twins import twins

console = Console(width=max(100, Console().width))


def chosen(words: list[str], split: str | None, origins: list[str]) -> list[Subject]:
    """The programs that were asked for."""
    every = [*cases(), *controls(), *twins()]
    return [
        one
        for one in every
        if (not words or any(word in one.name or word == one.kind for word in words))
        and (split is None or one.split == split)
        and (not origins or one.origin in origins)
    ]


def tools(peers: str | None) -> tuple[dict[str, Tool], list[str]]:
    """The tools that can run, and why others cannot."""
    found: dict[str, Tool] = {"evenflow": evenflow_tool}
    missing = []
    if peers is not None:
        sys.path.append(peers)
        for name, (module, tool) in PEERS.items():
            try:
                if module is not None:
                    importlib.import_module(module)
                found[name] = tool
            except ImportError as error:
                missing.append(f"{name} is left out: {error}. pip install --no-deps --target {peers} {name}")
    return found, missing


def bare(subject: Subject, seed: int) -> tuple[float, float | None]:
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


def weigh(subject: Subject, seed: int, name: str, tool: Tool, training_seconds: float) -> Outcome:
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


def run(subjects: list[Subject], with_tools: dict[str, Tool], seeds: int | None) -> Iterator[Outcome]:
    """Every tool on every program, with a bar; a control that does not reach its metric is told."""
    jobs = [(one, seed) for one in subjects for seed in one.seeds[:seeds]]
    columns = (
        TextColumn("{task.description:44s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for subject, seed in jobs:
            progress.update(task, description=subject.name)
            try:
                seconds, metric = bare(subject, seed)
            except Exception as error:
                console.print(f"[red]{subject.name} cannot be run: {type(error).__name__}: {error}")
                progress.advance(task)
                continue
            if not subject.as_claimed(metric):
                bound = f"≥ {subject.threshold}" if subject.threshold is not None else f"< {subject.ceiling}"
                console.print(
                    f"[red]{subject.name}#{seed} is left out: its metric is {metric}, expected {bound} "
                    f"of a {'faulty' if subject.faulty else 'healthy'} program"
                )
                progress.advance(task)
                continue
            for name, tool in with_tools.items():
                outcome = weigh(subject, seed, name, tool, seconds)
                console.print(line(outcome), highlight=False, soft_wrap=True)
                yield outcome
            progress.advance(task)


def line(outcome: Outcome) -> str:
    """One outcome on one line."""
    subject, verdict = outcome.subject, outcome.verdict
    if subject.faulty:
        mark = ("S" if outcome.found else "-") + ("C" if outcome.cause_within(1) else "-")
    else:
        mark = "!!" if outcome.alarmed else "ok"
    said = f"{', '.join(verdict.symptoms) or '–'} | {', '.join(verdict.causes) or '–'}"
    extra = outcome.seconds - outcome.training_seconds
    trouble = "".join(f" [{text}]" for text in (outcome.error, *verdict.skipped) if text)
    return f"{outcome.tool:11s} {mark} {subject.name}#{outcome.seed} {extra:5.1f}s {said}{trouble}"


def show(outcomes: list[Outcome]) -> None:
    """One table a split, one column a tool; then causes one by one."""
    names = list(dict.fromkeys(one.tool for one in outcomes))
    for title, part in (
        ("corpus, open half", _of(outcomes, "open", {"corpus"})),
        ("corpus, held out", _of(outcomes, "held out", {"corpus"})),
        ("corpus, all", _of(outcomes, None, {"corpus"})),
        ("our own controls and their faulty twins", _of(outcomes, None, {"control", "twin"})),
        ("everything", outcomes),
    ):
        if not part:
            continue
        table = Table(
            title=f"{title}: {len({one.subject.name for one in part})} programs", title_justify="left"
        )
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right")
        columns = [summary(one for one in part if one.tool == name) for name in names]
        for row in zip(*columns, strict=True):
            table.add_row(row[0][0], *(value for _, value in row))
        console.print(table)
    causes = Table(title="evenflow, cause by cause", title_justify="left")
    for heading in ("cause", "among three, where it is true", "true, where named first"):
        causes.add_column(heading)
    for cells in cause_table(one for one in outcomes if one.tool == "evenflow"):
        causes.add_row(*cells)
    console.print(causes)


def _of(outcomes: Iterable[Outcome], split: str | None, origins: set[str]) -> list[Outcome]:
    return [
        one
        for one in outcomes
        if one.subject.origin in origins and (split is None or one.subject.split == split)
    ]


def miss(one: Outcome) -> Iterator[str]:
    """Markdown on what evenflow got wrong in the open half."""
    subject, verdict = one.subject, one.verdict
    if one.tool == "evenflow" and subject.split == "open" and (one.wrong or one.error):
        yield f"\n## {subject.name} (seed {one.seed}, {subject.kind}, {subject.origin})"
        if one.error:
            yield f"* **error** {one.error}"
        yield f"* known: {', '.join(subject.symptoms) or 'healthy'} | {', '.join(subject.causes) or '–'}"
        yield f"* confirmed: {', '.join(subject.confirmed) or '–'}"
        yield f"* said: {', '.join(verdict.symptoms) or '–'} | {', '.join(verdict.causes) or '–'}"
        yield from (f"    * {text}" for text in verdict.story)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--split", choices=["open", "held out"])
    parser.add_argument("--origin", nargs="*", default=[], choices=["corpus", "control", "twin"])
    parser.add_argument("--seeds", type=int, metavar="N", help="at most so many seeds of each program")
    parser.add_argument("--peers", metavar="DIR", help="run the peers that were installed there too")
    parser.add_argument("--json", metavar="FILE", help="write every outcome there")
    parser.add_argument("--misses", metavar="FILE", help="write what went wrong in the open half there")
    parser.add_argument("--list", action="store_true", help="list the programs and run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subjects = chosen(asked.only, asked.split, asked.origin)
    if not subjects:
        parser.error(f"no program's name or kind contains {' or '.join(asked.only)}; --list shows them all")
    if asked.list:
        for one in subjects:
            known = f"{', '.join(one.symptoms)} | {', '.join(one.causes)}" if one.faulty else "healthy"
            console.print(f"{one.name:40s} {one.kind:12s} {one.origin:8s} {one.split:9s} {known}")
        return
    with_tools, missing = tools(asked.peers)
    bare(subjects[0], 0)  # what is slow only once is no tool's fault
    outcomes = []
    story = Path(asked.misses) if asked.misses else None
    if story is not None:
        story.write_text("# What went wrong\n", "utf-8")
    for outcome in run(subjects, with_tools, asked.seeds):
        outcomes.append(outcome)
        if story is not None:
            with story.open("a", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in miss(outcome))
    show(outcomes)
    for text in missing:
        console.print(text)
    if asked.json:
        Path(asked.json).write_text(json.dumps([one.as_json() for one in outcomes], indent=1), "utf-8")


if __name__ == "__main__":
    main()
