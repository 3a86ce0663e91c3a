"""Writes what is generated under docs/: a page for every rule, and the picture of the README.

    ./dev docs

Pages come from the rules themselves, the picture from a real run, so neither
can differ from what the program says. A test compares the pages with the rules.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from evenflow.check import check
from evenflow.cli.target import load_target
from evenflow.diagnose import explain, rules
from evenflow.report import ReportContent, render_terminal

HERE = Path(__file__).parent
PICTURED = "examples/digits.py:sigmoid_net"
COLUMNS = 92
FONTS = "'DejaVu Sans Mono', Menlo, Consolas, monospace"


def pages() -> dict[str, str]:
    """File below docs/ → its text."""
    found = {f"rules/{rule.code}.md": explain(rule.code) for rule in rules()}
    lines = [f"* [{rule.code} {rule.name}](rules/{rule.code}.md): {rule.summary}" for rule in rules()]
    found["rules.md"] = "# Rules\n\n" + "\n".join(lines) + "\n"
    return found


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
