"""The page in a real browser: drawn, silent, offline, and safe from names."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.browser import NEEDED, Browser
from tests.report import samples

from evenflow.report import ReportContent, render_html
from evenflow.report.gallery import pictures

pytestmark = NEEDED

DRAWN = "document.documentElement.dataset.pictures"
MARKS = """[...document.querySelectorAll('.frame')]
    .map(frame => frame.querySelectorAll('svg path, svg line, svg text').length)"""


def opened(browser: Browser, folder: Path, content: ReportContent, **options: bool | int) -> Browser:
    path = folder / "report.html"
    path.write_text(render_html(content), encoding="utf-8")
    browser.open(path, **options)  # type: ignore[arg-type]
    return browser


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(samples.vanishing(), id="vanishing"),
        pytest.param(samples.hostile(), id="hostile"),
        pytest.param(samples.deep(), id="deep"),
        pytest.param(ReportContent(samples.lstm(), samples.vanishing_diagnosis("lstm")), id="recurrent"),
        pytest.param(ReportContent(samples.non_finite(), samples.vanishing_diagnosis("1")), id="non_finite"),
    ],
)
def test_all_pictures_are_drawn_in_silence_and_offline(
    browser: Browser, tmp_path: Path, content: ReportContent
) -> None:
    page = opened(browser, tmp_path, content)
    assert page.value(DRAWN) == "drawn"
    assert page.problems() == []
    assert page.requests() == [(tmp_path / "report.html").as_uri()]
    marks = page.value(MARKS)
    assert len(marks) == len(pictures(content))
    assert min(marks) > 10


def test_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, samples.hostile())
    assert page.value("document.images.length") == 0
    assert page.value("document.scripts.length") == 3
    assert (
        page.value("[...document.querySelectorAll('*')].filter(e => e.onerror || e.onmouseover).length") == 0
    )
    heading = page.value("document.querySelector('.finding h3').innerText")
    assert heading == "Vanishing gradient at </script><img src=x onerror=alert(1)>"
    labels = page.value("[...document.querySelectorAll('#picture-gradient text')].map(t => t.textContent)")
    assert "[bold red]loud[/bold red]" in labels


def test_a_script_that_got_in_would_not_run(browser: Browser, tmp_path: Path) -> None:
    """The second line of defence: the page's policy. This also shows that the checks above can fail."""
    text = render_html(samples.healthy()).replace(
        "</main>", "<img src=x onerror='document.title=1'><script>document.title = 'owned'</script></main>"
    )
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert browser.value("document.title") == "ResidualNet – gradient flow"
    assert len([problem for problem in browser.problems() if "Content Security Policy" in problem]) >= 2


def test_the_theme_follows_the_reader(browser: Browser, tmp_path: Path) -> None:
    line = "getComputedStyle(document.querySelector('#picture-gradient .mark-line path')).stroke"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened(browser, tmp_path, samples.vanishing())
    assert (light.value(line), light.value(ground)) == ("rgb(11, 110, 140)", "rgb(245, 248, 250)")
    dark = opened(browser, tmp_path, samples.vanishing(), dark=True)
    assert (dark.value(line), dark.value(ground)) == ("rgb(79, 193, 222)", "rgb(13, 20, 25)")


@pytest.mark.parametrize("width", [340, 800, 1600])
def test_nothing_sticks_out_sideways(browser: Browser, tmp_path: Path, width: int) -> None:
    page = opened(browser, tmp_path, samples.vanishing(), width=width)
    assert page.value("document.documentElement.scrollWidth") <= width
    fits = "frame => frame.querySelector('svg').clientWidth <= frame.clientWidth"
    assert page.value(f"[...document.querySelectorAll('.frame')].every({fits})")


def test_without_javascript_the_numbers_remain(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, samples.vanishing(), javascript=False)
    assert page.value("document.querySelector('#gradient tbody tr').textContent.includes('Linear')")
    assert page.value("document.querySelector('.noscript').offsetHeight > 0")
