"""How well evenflow diagnoses: real faulty and healthy programs, our own controls, and peers beside it.

    python benchmarks/diagnose.py                     all programs, evenflow alone
    python benchmarks/diagnose.py --peers DIR         torchmortem, torch-audit, AutoTrainer's rules beside it
    python benchmarks/diagnose.py --split open        the half that may be looked at
    python benchmarks/diagnose.py --only gan so-31    programs of such a name or kind
    python benchmarks/diagnose.py --origin fresh      those that were written blind: see diagnosis/fresh
    python benchmarks/diagnose.py --origin unseen     a second set of these: see diagnosis/unseen
    python benchmarks/diagnose.py --origin matrix     controls with faults that chance chose
    python benchmarks/diagnose.py --misses FILE       what went wrong in the open half, and what was seen
    python benchmarks/diagnose.py --keep DIR          keep what evenflow saw of each program, and
    python benchmarks/diagnose.py --from DIR          judge that again by today's rules: no training, and
                                                      no cause tested by intervention
    python benchmarks/diagnose.py --json FILE --jobs 2
                                                      a line for each program as it ends, two at a time;
                                                      with --resume, what FILE has is not run again

A program is trained bare, then by each tool, from the same seed, in one thread. Times are
of the processor, so that other work on the machine does not count.
DIR is where the peers were put, apart from evenflow's own packages:

    pip install --no-deps --target DIR torchmortem==0.1.1 torch-audit==0.3.0

Half of the programs, chosen by a hash of their names, are *held out*: nobody who
writes rules looks at them, and their figures are printed beside those of the open half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis.runner import Job, Way, outcomes, peers, records, subjects, written
from benchmarks.diagnosis.scoring import Outcome, cause_table, summary, trial_table
from benchmarks.diagnosis.subject import Origin, Subject

console = Console(width=max(100, Console().width))


def chosen(words: list[str], split: str | None, origins: list[str]) -> list[Subject]:
    """The programs that were asked for."""
    return [
        one
        for one in subjects().values()
        if (not words or any(word in one.name or word == one.kind for word in words))
        and (split is None or one.split == split)
        and (not origins or one.origin in origins)
    ]


def run(jobs: list[Job], way: Way, processes: int, ledger: Path | None, resume: bool) -> Iterator[Outcome]:
    """Every tool on every program, with a bar; a program that is not as it is claimed to be is told."""
    tools = {"evenflow", *peers(way.peers)[0]}
    known = written(ledger, tools) if ledger is not None and resume else {}
    if ledger is not None and not resume:
        ledger.write_text("", "utf-8")
    before = [known[job] for job in jobs if job in known]
    left = [job for job in jobs if job not in known]
    columns = (
        TextColumn("{task.description:44s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for record in chain(before, records(left, way, processes, ledger)):
            progress.update(task, description=record["program"], advance=1)
            if record["left_out"]:
                text = f"{record['program']}#{record['seed']} is left out: {record['left_out']}"
                console.print(f"[red]{escape(text)}")
            for outcome in outcomes(record, tools):
                console.print(line(outcome), highlight=False, markup=False, soft_wrap=True)
                yield outcome


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
        ("fresh programs, written blind", _of(outcomes, None, {"fresh"})),
        ("unseen programs, written blind", _of(outcomes, None, {"unseen"})),
        ("matrix, open half", _of(outcomes, "open", {"matrix"})),
        ("matrix, held out", _of(outcomes, "held out", {"matrix"})),
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
    own = [one for one in outcomes if one.tool == "evenflow"]
    for cells in cause_table(own):
        causes.add_row(*cells)
    console.print(causes)
    trials = Table(title="evenflow, causes tested by intervention", title_justify="left")
    for heading in ("verdict", "true causes", "wrong causes"):
        trials.add_column(heading)
    for cells in trial_table(own):
        trials.add_row(*cells)
    console.print(trials)


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
    parser.add_argument("--origin", nargs="*", default=[], choices=get_args(Origin))
    parser.add_argument("--seeds", type=int, metavar="N", help="at most so many seeds of each program")
    parser.add_argument("--peers", metavar="DIR", help="run the peers that were installed there too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep there what evenflow saw")
    parser.add_argument("--from", dest="source", type=Path, metavar="DIR", help="judge what was kept there")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="in so many processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a line there as each program ends")
    parser.add_argument("--resume", action="store_true", help="leave out what the --json file has already")
    parser.add_argument("--misses", type=Path, metavar="FILE", help="what went wrong in the open half")
    parser.add_argument("--list", action="store_true", help="list the programs and run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = chosen(asked.only, asked.split, asked.origin)
    if not found:
        parser.error(f"no program's name or kind contains {' or '.join(asked.only)}; --list shows them all")
    if asked.resume and asked.json is None:
        parser.error("--resume needs the --json FILE that the interrupted run was writing")
    if asked.source is not None and (asked.keep is not None or asked.peers is not None):
        parser.error("--from trains nothing, so there is nothing to --keep and nothing for --peers to see")
    if asked.list:
        for one in found:
            known = f"{', '.join(one.symptoms)} | {', '.join(one.causes)}" if one.faulty else "healthy"
            console.print(f"{one.name:40s} {one.kind:12s} {one.origin:8s} {one.split:9s} {known}")
        return
    jobs = [(one.name, seed) for one in found for seed in one.seeds[: asked.seeds]]
    way = Way(asked.peers, asked.keep, asked.source)
    said = []
    if asked.misses is not None:
        asked.misses.write_text("# What went wrong\n", "utf-8")
    for outcome in run(jobs, way, asked.jobs, asked.json, asked.resume):
        said.append(outcome)
        if asked.misses is not None:
            with asked.misses.open("a", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in miss(outcome))
    show(said)
    for text in peers(asked.peers)[1]:
        console.print(text)


if __name__ == "__main__":
    main()
