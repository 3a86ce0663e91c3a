"""Experiments and their verdicts as text for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenflow.lab import Result, Verdict
from evenflow.lab.registry import Kind

SIGNS = {Verdict.AGREES: "✓", Verdict.CANNOT_TELL: "?", Verdict.DISAGREES: "✗"}
STYLES = {Verdict.AGREES: "green", Verdict.CANNOT_TELL: "yellow", Verdict.DISAGREES: "bold red"}


def verdict_text(verdict: Verdict) -> Text:
    """``✓ agrees``, in its colour."""
    return Text(f"{SIGNS[verdict]} {verdict}", style=STYLES[verdict], no_wrap=True)


def render_list(kinds: Sequence[Kind], console: Console) -> None:
    """Name, title and question of every experiment."""
    table = _table("Name", "Question")
    for kind in kinds:
        table.add_row(Text(kind.name(), style="bold", no_wrap=True), kind.question)
    console.print(table)
    console.print("\nRun one: evenflow lab run NAME", highlight=False)


def render_result(result: Result, console: Console) -> None:
    """The verdict of one experiment with every number behind it."""
    kind = type(result.experiment)
    console.print()
    heading = Text(kind.title, style="bold").append(f"  {kind.name()}, {result.seconds:.1f} s", style="dim")
    console.print(heading)
    console.print(Text(kind.question, style="italic"))
    table = _table("", "Quantity", "Expected", "Measured")
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    for comparison in result.outcome.comparisons:
        table.add_row(
            verdict_text(comparison.verdict), comparison.quantity, comparison.expected.text, comparison.text
        )
    console.print(table)
    for note in result.outcome.notes:
        console.print(Text(f"Note: {note}", style="dim"))


def render_summary(results: Sequence[Result], console: Console) -> None:
    """One line for each experiment, and the tally."""
    console.print()
    table = _table("", "Experiment", "Numbers", "Time")
    table.columns[2].justify = table.columns[3].justify = "right"
    for result in results:
        comparisons = result.outcome.comparisons
        agreeing = sum(comparison.verdict is Verdict.AGREES for comparison in comparisons)
        table.add_row(
            verdict_text(result.outcome.verdict),
            type(result.experiment).name(),
            f"{agreeing} of {len(comparisons)} agree",
            f"{result.seconds:.1f} s",
        )
    console.print(table)
    console.print(Text(tally(results), style="bold"))


def tally(results: Sequence[Result]) -> str:
    """How many experiments agree, cannot tell and disagree, and how long they took."""
    if not results:
        return "No experiment was run."
    counts = Counter(result.outcome.verdict for result in results)
    parts = [f"{counts[verdict]} {_verb(verdict, counts[verdict])}" for verdict in Verdict if counts[verdict]]
    plural = "" if len(results) == 1 else "s"
    seconds = sum(result.seconds for result in results)
    return f"{len(results)} experiment{plural}: {', '.join(parts)}. {seconds:.0f} s."


def _verb(verdict: Verdict, count: int) -> str:
    """``1 agrees``, ``2 agree``; ``cannot tell`` either way."""
    return str(verdict) if count == 1 or verdict is Verdict.CANNOT_TELL else str(verdict).removesuffix("s")


def _table(*head: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name)
    return table
