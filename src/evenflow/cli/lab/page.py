"""All results as one HTML page that opens offline, in the look of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps

from evenflow import __version__
from evenflow.cli.lab.charts import spec
from evenflow.cli.lab.terminal import SIGNS, tally
from evenflow.lab import Result, Verdict
from evenflow.lab.picture import HeatMap, Picture
from evenflow.lab.verdict import number
from evenflow.report.page import asset, drawing_library, script_sources

_TONES = {Verdict.AGREES: "ok", Verdict.CANNOT_TELL: "note", Verdict.DISAGREES: "error"}


def require_library() -> None:
    """Make sure that pages can be drawn.

    Raises:
        MissingPackageError: As :func:`render_page`.
    """
    drawing_library()


def render_page(results: Sequence[Result]) -> str:
    """The page.

    Raises:
        MissingPackageError: The package vl-convert-python, which holds the
            drawing library, is not installed.
    """
    library, script = drawing_library(), asset("page.js")
    experiments = [_experiment(result) for result in results]
    specs = {
        picture["id"]: picture["spec"] for experiment in experiments for picture in experiment["pictures"]
    }
    worst = Verdict.worst(result.outcome.verdict for result in results)
    return _template().render(
        version=__version__,
        tally=tally(results),
        sign=SIGNS[worst],
        tone=_TONES[worst],
        experiments=experiments,
        specs=htmlsafe_json_dumps(specs, allow_nan=False),
        style=asset("style.css"),
        library=library,
        script=script,
        script_sources=script_sources(library, script),
    )


def _experiment(result: Result) -> dict[str, Any]:
    kind, outcome = type(result.experiment), result.outcome
    return {
        "kind": kind,
        "name": kind.name(),
        "tone": _TONES[outcome.verdict],
        "sign": SIGNS[outcome.verdict],
        "verdict": outcome.verdict,
        "seconds": f"{result.seconds:.1f}",
        "settings": ", ".join(
            f"{key} {value}" for key, value in dataclasses.asdict(result.experiment).items()
        ),
        "notes": outcome.notes,
        "comparisons": [
            {"it": comparison, "tone": _TONES[comparison.verdict], "sign": SIGNS[comparison.verdict]}
            for comparison in outcome.comparisons
        ],
        "pictures": [
            {
                "id": f"{kind.name()}-{picture.name}",
                "it": picture,
                "spec": spec(picture),
                "head": _head(picture),
                "rows": _numbers(picture),
            }
            for picture in outcome.pictures
        ],
    }


def _head(picture: Picture) -> tuple[str, ...]:
    if isinstance(picture, HeatMap):
        return (f"{picture.y.title} ↓  {picture.x.title} →", *map(number, picture.columns))
    return ("curve", "", *(("first", "last") if _long(picture) else map(number, _places(picture))))


def _numbers(picture: Picture) -> list[tuple[str, ...]]:
    """The numbers of a picture as a table; of long curves both ends."""
    if isinstance(picture, HeatMap):
        return [(number(y), *map(number, row)) for y, row in zip(picture.rows, picture.values, strict=True)]
    rows = []
    for curve in picture.curves:
        at = dict(zip(curve.x, curve.y, strict=True))
        places = [curve.x[0], curve.x[-1]] if _long(picture) else _places(picture)
        cells = (number(y) if (y := at.get(place)) is not None else "–" for place in places)
        rows.append((curve.name, str(curve.origin), *cells))
    return rows


def _places(picture: Picture) -> list[float]:
    return sorted({place for curve in picture.curves for place in curve.x})


def _long(picture: Picture) -> bool:
    return len(_places(picture)) > 12


@cache
def _template() -> Template:
    loader = PackageLoader("evenflow.cli.lab")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.jinja")
