"""The page: one file, nothing loaded, nothing injected, everything said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from tests.report import samples

from evenflow.diagnose.finding import Diagnosis
from evenflow.errors import MissingPackageError
from evenflow.report import ReportContent, html, render_html
from evenflow.report.gallery import pictures
from evenflow.report.page import drawing_library
from evenflow.report.pictures import theme_colours
from evenflow.report.text import printable

VOID = {"meta", "link", "img", "br", "hr", "input", "path"}


class Document(HTMLParser):
    """What a browser would see: elements with attributes, scripts, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page() -> str:
    pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
    return render_html(samples.vanishing())


@pytest.fixture(scope="module")
def hostile(page: str) -> Document:
    return Document(render_html(samples.hostile()))


def test_every_element_is_closed_and_every_id_is_unique(page: str) -> None:
    document = Document(page)
    assert document.open == []
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in document.elements if tag == "a" and a["href"].startswith("#")]
    assert set(targets) <= set(ids)


def test_nothing_is_loaded(page: str) -> None:
    for tag, attributes in Document(page).elements:
        assert "src" not in attributes, f"<{tag}> loads {attributes['src']}"
        assert tag not in ("img", "iframe", "object", "embed", "base")
        if tag == "link":
            assert attributes["href"] == "data:,"
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_only_the_two_scripts_of_the_page_may_run(page: str) -> None:
    document = Document(page)
    policy = next(
        a["content"] for tag, a in document.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    data, *running = document.scripts
    assert sorted(rules["script-src"].split()) == sorted(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in running
    )
    assert len(running) == 2
    assert set(json.loads(data)) == {picture.name for picture in pictures(samples.vanishing())}


def test_findings_come_first_and_whole(page: str) -> None:
    text = Document(page).text
    order = [
        "1 error, 1 warning: vanishing gradient, saturation",
        "The gradient shrinks by 16.1 decades between the loss and the first layer.",
        "log10 of first over last gradient RMS is −16.1",
        "saturating activation",
        "92 %, confirmed by intervention",
        "Use ReLU with He initialisation instead of sigmoid.",
        "Backpropagation multiplies one factor for each layer",
        "23 % of the outputs of layer 1 are saturated.",
        "Gradient by layer Size (RMS)",
        "From the loss back to the input The gradient starts",
        "rule EF202 did not judge : needs several steps, found one",
    ]
    positions = [text.find(part) for part in order]
    assert -1 not in positions, order[positions.index(-1)]
    assert positions == sorted(positions)


def test_every_picture_can_be_heard_and_read(page: str) -> None:
    document = Document(page)
    frames = [a for tag, a in document.elements if a.get("class") == "frame"]
    shown = pictures(samples.vanishing())
    assert [frame["aria-label"] for frame in frames] == [picture.summary for picture in shown]
    assert {frame["role"] for frame in frames} == {"img"}
    levels = [int(tag[1]) for tag, _ in document.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level skipped"
    assert sum(tag == "table" for tag, _ in document.elements) >= len(shown)


def test_the_numbers_of_a_table_are_there(page: str) -> None:
    assert "0 Linear 1.1e-18 1.1e-18 3.8e-18 0 % 0 %" in Document(page).text


def test_a_healthy_net_says_so() -> None:
    pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
    document = Document(render_html(samples.healthy()))
    assert "No problem found" in document.text
    assert "No rule found anything to report. See what is not covered" in document.text
    assert any(a.get("class") == "verdict ok" for _, a in document.elements)
    assert "1 parameter frozen" in document.text


def test_hostile_names_are_text(hostile: Document) -> None:
    names = [printable(name) for name in samples.HOSTILE]
    for name in names:
        assert re.sub(r"\s+", " ", name) in hostile.text
    for tag, attributes in hostile.elements:
        assert tag != "img"
        assert not [name for name in attributes if name.startswith("on")], f"<{tag}> got a handler"
        assert not attributes.get("href", "").startswith("javascript:")
    assert len(hostile.scripts) == 3
    assert "49" not in re.findall(r"\{\{.*?\}\}|\b49\b", hostile.text), "no template was run"


def test_the_data_script_cannot_be_left(page: str) -> None:
    text = render_html(samples.hostile())
    start = text.index('<script type="application/json"')
    inside = text[text.index(">", start) + 1 : text.index("</script>", start)]
    assert not set("<>&'") & set(inside)
    assert json.loads(inside)


def test_an_explanation_holds_no_markup_but_markdown() -> None:
    text = str(
        html._markdown(
            "# Top\n\n**bold** <b onclick=x>raw</b>\n\n<script>alert(1)</script>\n\n"
            "![](https://example.org/x.png) [bad](javascript:alert(1)) [good](https://example.org)\n\n"
            "| a | b |\n|---|---|\n| 1 | 2 |\n"
        )
    )
    assert "<h3>Top</h3>" in text, "below the heading of its finding"
    assert "<strong>bold</strong>" in text
    assert "<td>1</td>" in text
    assert "&lt;b onclick=x&gt;raw" in text
    assert "<script" not in text
    assert "<img" not in text
    assert 'href="javascript' not in text
    assert '<a href="https://example.org">good</a>' in text


def test_an_explanation_stands_once_for_each_code() -> None:
    first, *others = html._cards(samples.hostile())
    assert first["explanation"] is not None
    assert [card["explanation"] for card in others] == [None] * len(others)


def test_the_library_cannot_end_its_script() -> None:
    pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
    assert not re.search(r"</script|<!--", drawing_library(), re.IGNORECASE)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    drawing_library.cache_clear()
    with pytest.raises(MissingPackageError) as error:
        render_html(ReportContent(samples.mlp(2), Diagnosis()))
    drawing_library.cache_clear()
    assert str(error.value) == (
        "The HTML report needs the package vl-convert-python, which is not installed. "
        "Install it with: pip install vl-convert-python   (or: pip install 'evenflow[html]')"
    )


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2), from 1 to 21."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colours = theme_colours("dark" if theme == "dark" else "light")
    pairs = [(text, ground) for text in ("ink", "muted", "accent") for ground in ("page", "card")]
    pairs += [(tone, f"{tone}-soft") for tone in ("error", "warning", "note", "ok")]
    pairs += [("accent", "soft"), ("on-format", "format"), ("muted", "error-soft"), ("muted", "ok-soft")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"
    for line in ("measured", "predicted", "loss", "gain", "total", *(f"series-{i}" for i in range(1, 9))):
        assert contrast(colours[line], colours["card"]) >= 3.0, line
