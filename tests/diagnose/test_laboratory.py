"""Pages show what the lab measured, and pictures on disk are those that experiments claim."""

from __future__ import annotations

import json
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from evenflow.diagnose import CauseName, explain, rules
from evenflow.diagnose.laboratory import LabPicture, Sketched, picture_of, pictures
from evenflow.lab import experiments

FOLDER = files("evenflow.diagnose").joinpath("pictures")
PAGES = {rule.name for rule in rules()} | set(CauseName)


def test_what_is_stored_is_what_the_experiments_say_they_explain() -> None:
    claimed = {
        page: f"{kind.name()}-{name}" for kind in experiments() for page, name in kind.explains.items()
    }
    index = json.loads(FOLDER.joinpath("index.json").read_text(encoding="utf-8"))
    assert index["pages"] == claimed, "run docs/pictures.py"
    assert set(index["pictures"]) == set(claimed.values())
    drawn = {file.name for file in FOLDER.iterdir() if file.name.endswith(".svg")}
    assert drawn == {f"{key}.svg" for key in claimed.values()}


def test_each_page_is_explained_by_one_experiment() -> None:
    claims = [page for kind in experiments() for page in kind.explains]
    assert sorted(claims) == sorted(set(claims))
    assert set(claims) <= PAGES


@pytest.mark.parametrize("page", sorted(pictures()))
def test_a_page_shows_its_picture_and_names_the_experiment(page: str) -> None:
    picture = picture_of(page)
    assert picture is not None
    kind = next(kind for kind in experiments() if kind.name() == picture.experiment)
    text = explain(page)
    assert f"## In the lab\n\n**{picture.title}.** {kind.question}" in text
    assert f"`evenflow lab run {picture.experiment}`" in text
    assert picture.sketch() in text
    root = ElementTree.fromstring(picture.svg())
    assert root.tag.endswith("svg")
    assert "http" not in picture.svg().replace("http://www.w3.org", "")


def test_a_page_without_an_experiment_has_no_such_part() -> None:
    assert picture_of("wrong_loss_or_output") is None
    assert "In the lab" not in explain("wrong_loss_or_output")


def test_a_sketch_has_one_scale_for_all_curves() -> None:
    curves = (
        Sketched("a, long", (1.0, 3.0), (0.0, -4.0, -8.0)),
        Sketched("b", (1.0, 3.0), (None, -8.0, -8.0)),
    )
    picture = LabPicture("x", "Title", "Why?", "Read so.", "layer", "log10 of it", "x.svg", curves)
    assert picture.sketch().splitlines() == [
        "log10 of it, layer 1 to 3",
        "a, long  █▅▁  0 → -8",
        "b         ▁▁  -8 → -8",
    ]
