"""What a search found, for the terminal: the ranked table, the loss and the gradient before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from evenflow.lab.verdict import mean, number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from evenflow.fix import Outcome, Tried
    from evenflow.lab.picture import Lines

_STYLES = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow"}
_WIDTH = 40
"""Columns of a curve: with its name and its ends a line of 80."""


def ranked(outcome: Outcome) -> list[Tried]:
    """All that was tried in pairs, confirmed ones first."""
    return [*outcome.patches, *(trial for trial in outcome.trials if trial not in outcome.patches)]


def cells(trial: Tried) -> dict[str, str]:
    """A row of the table as text."""
    gain = "–"
    if trial.interval is not None:
        low, high = map(number, trial.interval)
        gain = f"above {low}" if trial.diverged else f"{low} … {high}"
    return {
        "verdict": str(trial.verdict),
        "change": trial.patch.describe(),
        "before": number(mean(trial.baseline)),
        "after": number(mean(trial.patched)),
        "gain": gain,
        "edits": str(trial.patch.size),
    }


def ending(trial: Tried) -> str:
    """What came of it after the whole training, as a sentence; empty if that was not tried."""
    if trial.proof is None:
        return ""
    proof = trial.proof
    told = "better" if proof.better else "no better"
    return (
        f"After the whole training, {proof.steps} steps: {number(proof.patched)} with it, "
        f"{number(proof.baseline)} without; {told} in the end."
    )


def lengths(outcome: Outcome) -> str:
    """Steps of the trials; where the first found nothing, later ones were longer."""
    return " or ".join(str(steps) for steps in sorted({trial.steps for trial in outcome.trials})) or "0"


def most_seeds(outcome: Outcome) -> int:
    """Of the trial from most seeds; what lost from the first has no others."""
    return max((len(trial.baseline) for trial in outcome.trials), default=0)


def verdict(outcome: Outcome) -> str:
    """All of it in a sentence."""
    if outcome.report.healthy:
        return "Nothing to fix."
    if not outcome.patches and any(trial.proof for trial in outcome.trials):
        return "No patch is better after the whole training, though some train faster at first."
    if not outcome.patches:
        return "No patch was confirmed. Longer trials (--steps) and more --seeds may tell more."
    best = outcome.patches[0].patch.describe()
    return f"{best[0].upper()}{best[1:]}: confirmed."


def cut_short(outcome: Outcome) -> str:
    """Why not everything was tried, as a sentence; empty if it was."""
    if outcome.interrupted:
        return "Interrupted: not everything was tried."
    if outcome.time_up:
        return "Time was up: not everything was tried. More --minutes may find more."
    return ""


def show(outcome: Outcome, console: Console, *, everything: bool) -> None:
    """The ranked table, pictures of the best patch, and what was refuted before it."""
    from rich.table import Table
    from rich.text import Text

    from evenflow.report.content import headline

    console.print(Text(headline(outcome.report.diagnosis), style="bold"))
    if outcome.report.healthy:
        console.print(verdict(outcome))
        return
    if outcome.trials:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("", "change", "without", "with", "gain, 95 %", "edits"):
            table.add_column(name, justify="left" if name in ("", "change") else "right")
        for trial in ranked(outcome):
            said, *rest = cells(trial).values()
            table.add_row(Text(said, style=_STYLES[said]), *rest)
        console.print(table)
        console.print(
            f"Means over up to {most_seeds(outcome)} seeds after {lengths(outcome)} steps; more is better.",
            style="dim",
            highlight=False,
        )
        for trial in ranked(outcome):
            if trial.proof is not None:
                console.print(f"{trial.patch.describe()}: {ending(trial)}", highlight=False)
    if outcome.patches:
        from evenflow.cli.fix.pictures import pictures

        for picture in pictures(outcome, outcome.patches[0]):
            for line in drawn(picture, ascii_only=console.options.ascii_only):
                console.print(line)
    for text in outcome.advice:
        console.print(f"By hand: {text}.", highlight=False)
    if everything:
        for one in outcome.refuted:
            console.print(Text(f"refuted  {one.patch.describe()}. {one.why}", style="dim"))
    elif outcome.refuted:
        console.print(f"{len(outcome.refuted)} more were given up before that: --all", style="dim")
    if not outcome.patches and any(trial.seedless for trial in outcome.trials):
        console.print(
            "Every seed gave the very same losses, so no effect has an interval: nothing was confirmed. "
            "Let the training draw from random, NumPy or PyTorch.",
            style="yellow",
        )
    if not outcome.patches:
        console.print(verdict(outcome))
    if why := cut_short(outcome):
        console.print(why, style="yellow")


def drawn(picture: Lines, *, ascii_only: bool) -> Iterator[Text]:
    """A picture as sparklines on one scale, one for each curve, with both ends as numbers."""
    from rich.text import Text

    from evenflow.report.bars import ASCII, UNICODE, Scale, sparkline

    glyphs = ASCII if ascii_only else UNICODE

    def told(value: float | None) -> str:
        if value is None:
            return "none"
        return f"{10.0**value:.1e}" if picture.y.decades else number(value)

    yield Text("")
    yield Text(picture.title, style="bold")
    values = [[y for y in curve.y if y is not None and math.isfinite(y)] for curve in picture.curves]
    if not any(values):
        return
    lift = 0.0 if picture.y.decades else min(map(min, filter(None, values)))
    levels = [[_level(y, lift, decades=picture.y.decades) for y in curve.y] for curve in picture.curves]
    scale = Scale.of([one for row in levels for one in row if one is not None], _WIDTH)
    for curve, row in zip(picture.curves, levels, strict=True):
        line = sparkline(row, scale, glyphs)
        ends = glyphs.text(f"{told(curve.y[0])} → {told(curve.y[-1])}")
        yield Text.assemble((f"{curve.name:18} ", "dim"), line, "  ", ends)


def _level(value: float | None, lift: float, *, decades: bool) -> float | None:
    """On a logarithmic scale, which a sparkline has; a loss is one where it is above 0 throughout."""
    if value is None or not math.isfinite(value):
        return None
    if decades:
        return value
    return math.log10(value) if lift > 0 else value
