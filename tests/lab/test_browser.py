"""The playground and the pages in a real browser: Chromium, driven as a user would drive it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report import samples

from evenflow.cli.lab.page import render_page
from evenflow.cli.lab.playground import Playground
from evenflow.lab import experiment, run
from evenflow.lab.playground import FeedForward
from evenflow.report import render_html

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (_CHROMIUM and _DRIVER), reason="no browser: apt-get install chromium chromium-driver"
    ),
    # urllib3, under selenium, leaves closing its sockets to the garbage collector.
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1300,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": request.param}]}
    )
    yield driver
    driver.quit()


@pytest.fixture
def playground(browser: Any) -> Iterator[Any]:
    with Playground() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser.get(server.address)
        _wait(browser, lambda: _drawn(browser) == "expected")
        yield browser
        server.shutdown()
        thread.join()
    assert _complaints(browser) == []


def test_dragging_the_depth_slider_moves_the_curve(playground: Any) -> None:
    slider = playground.find_element("css selector", "#feed-forward-depth")
    before = _levels(playground)
    assert before == pytest.approx(FeedForward().expected().levels)
    webdriver.ActionChains(playground).drag_and_drop_by_offset(slider, 30, 0).perform()
    _wait(playground, lambda: len(_levels(playground)) == int(slider.get_property("value")))
    depth = int(slider.get_property("value"))
    assert depth > 60  # the thumb was let go right of the middle
    assert _levels(playground) == pytest.approx(FeedForward(depth=depth).expected().levels)
    told = playground.find_element("css selector", "#headline").text
    assert told.startswith(f"The gradient vanishes by {-_levels(playground)[0]:.1f} decades")
    path = playground.find_element("css selector", "#plot path[aria-roledescription='line mark'], #plot path")
    assert path.get_attribute("d")


def test_the_keyboard_reaches_and_moves_everything(playground: Any) -> None:
    keys = webdriver.Keys
    seen = []
    for _ in range(11):
        webdriver.ActionChains(playground).send_keys(keys.TAB).perform()
        seen.append(playground.switch_to.active_element.get_attribute("id"))
    assert [name for name in seen if name.startswith("feed-forward-")] == [
        f"feed-forward-{name}" for name in ("depth", "width", "activation", "init", "norm", "skips")
    ]  # gain and bias are idle beside the default init
    assert "measure" in seen
    slider = playground.find_element("css selector", "#feed-forward-depth")
    slider.send_keys(keys.ARROW_RIGHT)
    _wait(playground, lambda: len(_levels(playground)) == 21)


def test_the_button_measures_real_nets(playground: Any) -> None:
    playground.find_element("css selector", "#measure").click()
    _wait(playground, lambda: _drawn(playground) == "measured")
    status = playground.find_element("css selector", "#status").text
    assert status.startswith("Decades from the last place to the first, measured: −16.".replace("−", "-"))
    head = playground.execute_script("return document.querySelector('#numbers thead').textContent")
    assert head.endswith("real net 1real net 2real net 3")


def test_time_steps_of_the_recurrent_net(playground: Any) -> None:
    playground.find_element("xpath", "//label[contains(., 'Recurrent')]").click()
    _wait(playground, lambda: len(_levels(playground)) == 50)
    playground.find_element("css selector", "#recurrent-steps").send_keys(webdriver.Keys.END)
    _wait(playground, lambda: len(_levels(playground)) == 200)


def test_the_pages_draw_all_their_pictures(browser: Any, tmp_path: Path) -> None:
    result = run(experiment("activations").of_size(quick=True))
    pages = {"report": render_html(samples.vanishing()), "lab": render_page([result])}
    for name, text in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        browser.get(path.as_uri())
        _wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.pictures"))
        assert browser.execute_script("return document.documentElement.dataset.pictures") == "drawn"
        frames = browser.find_elements("css selector", ".frame svg")
        assert frames
        assert all(frame.size["width"] > 200 for frame in frames)
    assert _complaints(browser) == []


def _wait(browser: Any, condition: Callable[[], Any], seconds: float = 30) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: condition())


def _drawn(browser: Any) -> str | None:
    found: str | None = browser.execute_script("return document.documentElement.dataset.picture")
    return found


def _levels(browser: Any) -> list[float]:
    found: list[float] = json.loads(
        browser.execute_script("return document.documentElement.dataset.levels || '[]'")
    )
    return found


def _complaints(browser: Any) -> list[str]:
    """What the console holds above the level of a remark: errors, refused scripts."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
