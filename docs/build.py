"""Writes what is generated under docs/: pages of rules, the lab's table, and the picture of the README.

    ./dev docs

Pages come from the rules and experiments themselves, the picture from a real run, so none
can differ from what the program says. A test compares the pages with their sources. The
times in the lab's table are those of ``lab-times.json``, which is written by

    evenflow lab run --all --times docs/lab-times.json
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from evenflow.check import check
from evenflow.cli.target import load_target
from evenflow.diagnose import Rule, explain, rules
from evenflow.diagnose.laboratory import picture_of
from evenflow.lab import experiments
from evenflow.report import ReportContent, render_terminal

HERE = Path(__file__).parent
PICTURED = "examples/digits.py:sigmoid_net"
COLUMNS = 92
TABLE = ("<!-- experiments: written by docs/build.py -->", "<!-- end of experiments -->")
FONTS = "'DejaVu Sans Mono', Menlo, Consolas, monospace"


def pages() -> dict[str, str]:
    """File below docs/ → its text."""
    found = {f"rules/{rule.code}.md": pictured(rule) for rule in rules()}
    lines = [f"* [{rule.code} {rule.name}](rules/{rule.code}.md): {rule.summary}" for rule in rules()]
    found["rules.md"] = "# Rules\n\n" + "\n".join(lines) + "\n"
    found["lab.md"] = lab_page()
    return found


def pictured(rule: Rule) -> str:
    """A rule's page, with the lab's picture in place of the terminal's sketch of it."""
    text, seen = explain(rule.code), picture_of(rule.name)
    if seen is None:
        return text
    image = f"![{seen.y} over {seen.x}](../../src/evenflow/diagnose/pictures/{seen.file})"
    return text.replace(f"```\n{seen.sketch()}\n```", image)


def lab_page() -> str:
    """The page of the lab, with its table of experiments made anew."""
    times = json.loads((HERE / "lab-times.json").read_text(encoding="utf-8"))
    rows = ["| name | asks | quick | full | at full size it |", "|---|---|---:|---:|---|"]
    sums = dict.fromkeys(("quick", "full"), 0.0)
    for kind in experiments():
        sizes = times.get(kind.name(), {})
        cells = []
        for size in sums:
            seconds = sizes.get(size, {}).get("processor_seconds")
            sums[size] += seconds or 0.0
            cells.append("–" if seconds is None else f"{seconds:.0f} s")
        verdict = sizes.get("full", {}).get("verdict", "–")
        rows.append(f"| `{kind.name()}` | {kind.question} | {cells[0]} | {cells[1]} | {verdict} |")
    rows.append(f"| all | | {sums['quick'] / 60:.0f} min | {sums['full'] / 60:.0f} min | |")
    text = (HERE / "lab.md").read_text(encoding="utf-8")
    table = f"{TABLE[0]}\n\n" + "\n".join(rows) + f"\n\n{TABLE[1]}"
    return re.sub(f"{TABLE[0]}.*{TABLE[1]}", lambda _: table, text, flags=re.DOTALL)


def picture() -> str:
    """The terminal's report of the demo's first net, as SVG.

    Rich's SVG fetches its font from a server and sets every run of text to the
    width that this font has. Here it takes a font that is at hand, and glyphs
    are stretched rather than spaced, so that bars have no gaps in any font.
    """
    target = load_target(PICTURED)
    report = check(target.model, target.inputs, target.loss)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    render_terminal(ReportContent(report.flow, report.diagnosis, title=PICTURED), console)
    svg = console.export_svg(title=f"evenflow check {PICTURED}", unique_id="report")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONTS)
    return svg.replace("textLength=", 'lengthAdjust="spacingAndGlyphs" textLength=')


def main() -> None:
    for stale in (HERE / "rules").glob("*.md"):
        stale.unlink()
    for name, text in {**pages(), "check.svg": picture()}.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
