"""Draws the pictures that pages of rules and causes show, from quick runs of the lab.

    python docs/pictures.py               all experiments that explain a page (some minutes)
    python docs/pictures.py sigmoid-depth only these; the others stay as they are

The drawings and their curves go to src/evenflow/diagnose/pictures/.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert

from evenflow.cli.lab.charts import spec
from evenflow.lab import Result, experiments, run
from evenflow.lab.picture import Curve, Lines, Origin
from evenflow.report.pictures import theme_colours

HERE = Path(__file__).parents[1] / "src" / "evenflow" / "diagnose" / "pictures"
WIDTH = 640
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
"""The widest first, for places are measured with it: other faces then have room."""
POINTS = 24
"""Values of a curve that the terminal's sketch keeps."""


def drawing(picture: Lines) -> str:
    """The picture as SVG that follows the reader's light or dark theme."""
    text = json.dumps(spec(picture)).replace('"width": "container"', f'"width": {WIDTH}')
    whole = json.loads(text)
    whole.pop("autosize")
    whole["layer"] = [
        layer for layer in whole["layer"] if layer["mark"].get("opacity") != 0
    ]  # for the pointer
    svg: str = vl_convert.vegalite_to_svg({**whole, "padding": 8}, allowed_base_urls=[])
    used = sorted(set(re.findall(r"var\(--([a-z0-9-]+)\)", svg)))
    light, dark = (
        "".join(f"--{name}:{theme_colours(theme)[name]};" for name in used) for theme in ("light", "dark")
    )
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + style, svg, count=1) + "\n"


def record(result: Result, picture: Lines) -> dict[str, Any]:
    """What the index keeps of a picture."""
    kind = type(result.experiment)
    return {
        "experiment": kind.name(),
        "title": picture.title,
        "question": kind.question,
        "reading": picture.reading,
        "x": picture.x.title,
        "y": f"log10 of {picture.y.title}" if picture.y.decades else picture.y.title,
        "file": f"{kind.name()}-{picture.name}.svg",
        "curves": sketched(picture.curves),
    }


def sketched(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Measured curves, one of each name."""
    first: dict[str, Curve] = {}
    for curve in curves:
        if curve.origin is Origin.MEASURED:
            first.setdefault(curve.name, curve)
    return [thinned(curve) for curve in first.values()]


def thinned(curve: Curve) -> dict[str, Any]:
    """A curve at :data:`POINTS` even places."""
    last = len(curve.x) - 1
    places = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)})
    values = [curve.y[place] for place in places]
    return {
        "name": curve.name,
        "x": [curve.x[0], curve.x[-1]],
        "y": [None if value is None else float(f"{value:.4g}") + 0.0 for value in values],
    }


def main() -> None:
    index_file = HERE / "index.json"
    old = json.loads(index_file.read_text(encoding="utf-8")) if index_file.exists() else {"pictures": {}}
    pages: dict[str, str] = {}
    drawn: dict[str, Any] = {}
    for kind in experiments():
        keys = {page: f"{kind.name()}-{name}" for page, name in kind.explains.items()}
        pages |= keys
        if sys.argv[1:] and kind.name() not in sys.argv[1:]:
            drawn |= {key: old["pictures"][key] for key in keys.values()}
            continue
        if not keys:
            continue
        result = run(kind.of_size(quick=True))
        for picture in result.outcome.pictures:
            if f"{kind.name()}-{picture.name}" in keys.values() and isinstance(picture, Lines):
                one = record(result, picture)
                drawn[f"{kind.name()}-{picture.name}"] = one
                (HERE / one["file"]).write_text(drawing(picture), encoding="utf-8")
                print(f"{HERE / one['file']}")
    for stale in HERE.glob("*.svg"):
        if stale.name not in {one["file"] for one in drawn.values()}:
            stale.unlink()
    text = json.dumps({"pages": dict(sorted(pages.items())), "pictures": drawn}, indent=1, ensure_ascii=False)
    index_file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
