"""Specifications: they compile without complaint and draw exactly the numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.report import samples

from evenflow.diagnose.finding import Diagnosis
from evenflow.flow import Role
from evenflow.report import ReportContent
from evenflow.report.captions import READINGS, TITLES, PictureName
from evenflow.report.charts.base import decade_ticks, keys, label_axis, place_axis, whole_decades
from evenflow.report.figures import profile, waterfall
from evenflow.report.gallery import Picture, pictures
from evenflow.report.pictures import theme_colours

vl_convert = pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")

CONTENTS = {
    "vanishing": samples.vanishing(),
    "healthy": samples.healthy(),
    "recurrent": ReportContent(samples.lstm(states=4), Diagnosis(), predicted=samples.lstm()),
    "non_finite": ReportContent(samples.non_finite(), Diagnosis()),
    "three_layers": ReportContent(samples.mlp(3), Diagnosis()),
    "predicted": ReportContent(samples.mlp(3, predicted=True), Diagnosis()),
    "deep": samples.deep(200),
    "hostile": samples.hostile(),
    "training": samples.training(),
}
ALL = [pytest.param(p, id=f"{name}-{p.name}") for name, c in CONTENTS.items() for p in pictures(c)]


def find(content: ReportContent, name: PictureName) -> Picture:
    return next(picture for picture in pictures(content) if picture.name is name)


def values(spec: Any) -> Iterator[dict[str, Any]]:
    """All rows of data in a specification."""
    for layer in spec["layer"]:
        yield from layer["data"]["values"]


def without_data(value: Any) -> Any:
    """The specification without rows and without the names that a scale lists."""
    if isinstance(value, dict):
        return {k: without_data(v) for k, v in value.items() if k not in ("values", "domain")}
    return [without_data(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("picture", ALL)
def test_a_specification_compiles(picture: Picture) -> None:
    compiled = vl_convert.vegalite_to_vega(picture.spec)
    assert compiled["marks"]
    json.dumps(picture.spec, allow_nan=False)


@pytest.mark.parametrize("picture", ALL)
def test_every_colour_is_a_variable_of_the_style_sheet(picture: Picture) -> None:
    text = json.dumps(without_data(picture.spec))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) <= set(theme_colours("light"))
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", text), "a fixed colour follows no theme"


@pytest.mark.parametrize("picture", pictures(samples.hostile()), ids=lambda picture: picture.name)
def test_names_are_data_and_nothing_else(picture: Picture) -> None:
    text = json.dumps(without_data(picture.spec), ensure_ascii=False)
    for mark in ("onerror", "bold red", "2J", "onmouseover", "7*7", "alert", "層", "xxxx"):
        assert mark not in text


def test_pictures_come_in_order_and_only_if_there_is_something_to_see() -> None:
    names = [picture.name for picture in pictures(CONTENTS["recurrent"])]
    over_steps = [PictureName.LOSS, PictureName.TRAINING]
    assert names == [name for name in PictureName if name not in over_steps]
    assert [picture.name for picture in pictures(CONTENTS["training"])][:2] == over_steps
    assert PictureName.TIME not in [picture.name for picture in pictures(CONTENTS["vanishing"])]
    assert pictures(ReportContent(samples.Net().flow(), Diagnosis())) == ()
    assert {*TITLES} == {*READINGS} == {*PictureName}
    seen = [picture.name for picture in pictures(CONTENTS["predicted"])]
    assert PictureName.SPECTRUM in seen, "the samples know their exponents"


def test_the_line_of_the_profile_is_the_profile() -> None:
    content = samples.vanishing()
    rows = list(values(find(content, PictureName.GRADIENT).spec))
    measured = {row["place"]: row["level"] for row in rows if row.get("series") == "measured"}
    readings = profile(content.flow, Role.ACTIVATION_GRADIENT)
    assert measured == {reading.place: reading.log10_rms for reading in readings}
    assert content.predicted is not None
    predicted = {row["key"]: (row["from"], row["to"]) for row in rows if row.get("series") == "predicted"}
    assert predicted == {
        reading.place: (pytest.approx(reading.log10_rms - 0.2), pytest.approx(reading.log10_rms + 0.2))
        for reading in profile(content.predicted, Role.ACTIVATION_GRADIENT)
        if reading.log10_rms is not None
    }
    assert {row["code"] for row in rows if row.get("code")} == {"EF101", "EF105"}


def test_a_predicted_flow_has_its_band_too() -> None:
    picture = find(CONTENTS["predicted"], PictureName.GRADIENT)
    (band,) = [layer for layer in picture.spec["layer"] if layer["mark"]["type"] == "area"]
    assert [row["to"] - row["from"] for row in band["data"]["values"]] == pytest.approx([0.4] * 5)
    assert "The band is where one random draw of the weights should lie." in picture.reading


def test_places_without_a_level_have_a_mark_at_the_edge() -> None:
    spec = find(CONTENTS["non_finite"], PictureName.GRADIENT).spec
    odd = {row["place"]: row["what"] for row in values(spec) if "what" in row}
    assert odd == {"0": "NaN or infinite", "1": "exactly zero"}
    edges = {row["place"]: row["edge"] for row in values(spec) if "what" in row}
    assert edges["1"] < -9.0
    assert edges["0"] > 2.0
    axis = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")["encoding"]["y"]["axis"]
    assert '"zero"' in axis["labelExpr"]
    assert '"NaN, \\u221e"' in axis["labelExpr"]


def test_the_bars_of_the_waterfall_are_its_steps() -> None:
    content = samples.vanishing()
    rows = list(values(find(content, PictureName.WATERFALL).spec))
    bars = rows[: len(rows) // 2]
    fall = waterfall(content.flow, 40)
    assert [(row["from"], row["to"]) for row in bars[:-1]] == [
        (s.log10_before, s.log10_after) for s in fall.steps
    ]
    assert (bars[-1]["from"], bars[-1]["to"], bars[-1]["gain"]) == (
        fall.steps[0].log10_before,
        fall.steps[-1].log10_after,
        "−16.15",
    )


def test_the_histogram_sums_to_one_for_each_role() -> None:
    rows = [row for row in values(find(samples.vanishing(), PictureName.SPECTRUM).spec) if "share" in row]
    unique = {(row["role"], row["from"]): row["share"] for row in rows}
    for role in ("activation", "activation gradient", "parameter gradient"):
        assert sum(share for (name, _), share in unique.items() if name == role) == pytest.approx(1.0)


def test_the_formats_end_where_the_standard_says() -> None:
    spec = find(ReportContent(samples.mlp(2), Diagnosis()), PictureName.SPECTRUM).spec
    bars = [
        (row["format"], row["opacity"], row["from"], row["to"]) for row in values(spec) if "bottom" in row
    ]
    assert ("float16", 0.45, -24, -14) in bars, "subnormal"
    assert ("float16", 1.0, -14, 16) in bars, "normal, up to 65504 < 2^16"


@pytest.mark.parametrize("name", ["vanishing", "non_finite", "recurrent", "healthy"])
def test_each_picture_has_its_numbers_and_words(name: str) -> None:
    for picture in pictures(CONTENTS[name]):
        assert picture.title
        assert picture.reading
        assert re.fullmatch(r"[A-Z].*\.", picture.summary), picture.summary
        assert picture.numbers.rows
        for table in (picture.numbers, picture.aside):
            assert table is None or {len(row) for row in table.rows} == {len(table.head)}


def test_the_table_tells_zero_from_nothing() -> None:
    rows = find(samples.healthy(), PictureName.PARAMETER_GRADIENT).numbers.rows
    assert rows[0] == ("embed.weight", "Linear", "– (frozen)", "–", "–", "–")
    rows = find(CONTENTS["non_finite"], PictureName.GRADIENT).numbers.rows
    assert [row[2] for row in rows] == ["1.0e-2", "exactly zero", "1.0e-9", "1.0e2"]
    assert [row[5] for row in rows] == ["92.7 %".replace("92.7", "93"), "0 %", "0 %", "0 %"]


def test_few_places_are_all_named_and_many_by_their_blocks() -> None:
    names, axis = place_axis([f"{i}" for i in range(20)])
    assert axis["axis"]["values"] == names == [f"{i}" for i in range(20)]
    places = [f"net.h.{block}.{leaf}" for block in range(12) for leaf in ("norm", "fc", "act", "drop")]
    names, axis = place_axis(places)
    assert axis["axis"]["values"] == [f"net.h.{block}" for block in range(12)]
    assert len(set(names)) == len(places)
    _, axis = place_axis([f"{i}" for i in range(1000)])
    assert 8 <= len(axis["axis"]["values"]) <= 12


def test_short_names_stay_different() -> None:
    long = "x" * 50
    assert keys([f"{long}.a", f"{long}.a", "b"]) == ["…a", "…a ·2", "b"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (-3, 0, [-3, -2, -1, 0]),
        (-20, 0, list(range(-20, 1, 5))),
        (-320, 0, [-300, -250, -200, -150, -100, -50, 0]),
    ],
)
def test_ticks_are_round_decades(low: int, high: int, ticks: list[int]) -> None:
    assert decade_ticks(low, high) == ticks


def test_an_axis_of_levels_is_never_shorter_than_three_decades() -> None:
    assert whole_decades([-0.4, -0.2]) == (-2, 1)
    assert whole_decades([-7.5, 1.2]) == (-8, 2)
    assert whole_decades([]) == (-3, 0)
    assert label_axis({})["labelExpr"] == "''"


def test_the_map_of_a_run_has_a_cell_for_each_place_and_step() -> None:
    picture = find(CONTENTS["training"], PictureName.TRAINING)
    cells = list(values(picture.spec))
    assert len(cells) == 3 * 12
    assert {cell["told"] for cell in cells if cell["level"] is None} == {"exactly zero", "NaN or infinite"}
    rising = [cell["level"] for cell in cells if cell["place"] == "first.weight"]
    assert rising == pytest.approx([-6 + step * math.log10(2) for step in range(12)])
    assert picture.numbers.rows[0][1] == "1.0e-6"


def test_the_loss_is_drawn_up_to_where_it_breaks() -> None:
    picture = find(CONTENTS["training"], PictureName.LOSS)
    rows = list(values(picture.spec))
    assert [row["value"] for row in rows[:11]] == [2.0**-step for step in range(11)]
    assert [row["told"] for row in rows[11:]] == ["nan", "nan"]  # the gap, and the mark at the edge
    assert picture.spec["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"
    assert "lowest 0.0009766" in picture.summary
