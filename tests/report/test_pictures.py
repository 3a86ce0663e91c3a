"""Single pictures as files."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from tests.report import samples

from evenflow.errors import EvenflowError
from evenflow.report.captions import PictureName
from evenflow.report.pictures import picture_png, picture_svg, theme_colours

pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_svg_is_whole_and_in_the_colours_of_its_theme(theme: str) -> None:
    text = picture_svg(
        samples.vanishing(), "gradient", width=500, theme="dark" if theme == "dark" else "light"
    )
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    assert "var(--" not in text
    assert theme_colours("dark" if theme == "dark" else "light")["measured"] in text
    assert 500 <= float(root.attrib["width"]) <= 620


@pytest.mark.parametrize("name", [name for name in PictureName if name is not PictureName.TIME])
def test_every_picture_can_be_a_file(name: PictureName) -> None:
    over_steps = name in (PictureName.LOSS, PictureName.TRAINING)
    root = ET.fromstring(picture_svg(samples.training() if over_steps else samples.hostile(), name))
    assert len(list(root.iter())) > 20
    assert not [e for e in root.iter() if e.tag.endswith(("script", "image", "img"))]


def test_a_png() -> None:
    assert picture_png(samples.healthy(), PictureName.WATERFALL, width=300).startswith(b"\x89PNG")


def test_a_picture_that_is_not_there() -> None:
    with pytest.raises(EvenflowError) as error:
        picture_svg(samples.healthy(), "time")
    assert str(error.value) == (
        "This report has no picture 'time'. It has: gradient, waterfall, parameter-gradient, activation, "
        "spectrum, exponent-map. Pictures that can be asked for are: loss, training, gradient, waterfall, "
        "time, parameter-gradient, activation, spectrum, exponent-map."
    )
