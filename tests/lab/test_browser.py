"""The playground and the pages in a real browser: Chromium, driven as a user would drive it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser import NEEDED, Browser, webdriver

from evenflow.cli.lab.page import render_page
from evenflow.cli.lab.playground import Playground
from evenflow.lab import experiment, run
from evenflow.lab.playground import FeedForward

pytestmark = NEEDED


@pytest.fixture(params=["light", "dark"])
def playground(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Playground() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser.open(server.address, dark=request.param == "dark", width=1300)
        browser.wait(lambda: _drawn(browser) == "expected")
        yield browser
        server.shutdown()
        thread.join()
    assert browser.problems() == []


def test_dragging_the_depth_slider_moves_the_curve(playground: Browser) -> None:
    slider = playground.driver.find_element("css selector", "#feed-forward-depth")
    before = _levels(playground)
    assert before == pytest.approx(FeedForward().expected().levels)
    webdriver.ActionChains(playground.driver).drag_and_drop_by_offset(slider, 30, 0).perform()
    playground.wait(lambda: len(_levels(playground)) == int(slider.get_property("value")))
    depth = int(slider.get_property("value"))
    assert depth > 60  # the thumb was let go right of the middle
    assert _levels(playground) == pytest.approx(FeedForward(depth=depth).expected().levels)
    told = playground.driver.find_element("css selector", "#headline").text
    assert told.startswith(f"The gradient vanishes by {-_levels(playground)[0]:.1f} decades")
    path = playground.driver.find_element(
        "css selector", "#plot path[aria-roledescription='line mark'], #plot path"
    )
    assert path.get_attribute("d")


def test_the_keyboard_reaches_and_moves_everything(playground: Browser) -> None:
    keys = webdriver.Keys
    seen = []
    for _ in range(11):
        webdriver.ActionChains(playground.driver).send_keys(keys.TAB).perform()
        seen.append(playground.driver.switch_to.active_element.get_attribute("id"))
    assert [name for name in seen if name.startswith("feed-forward-")] == [
        f"feed-forward-{name}" for name in ("depth", "width", "activation", "init", "norm", "skips")
    ]  # gain and bias are idle beside the default init
    assert "measure" in seen
    slider = playground.driver.find_element("css selector", "#feed-forward-depth")
    slider.send_keys(keys.ARROW_RIGHT)
    playground.wait(lambda: len(_levels(playground)) == 21)


def test_the_button_measures_real_nets(playground: Browser) -> None:
    playground.driver.find_element("css selector", "#measure").click()
    playground.wait(lambda: _drawn(playground) == "measured")
    status = playground.driver.find_element("css selector", "#status").text
    assert status.startswith("Decades from the last place to the first, measured: −16.".replace("−", "-"))
    head = playground.value("document.querySelector('#numbers thead').textContent")
    assert head.endswith("real net 1real net 2real net 3")


def test_time_steps_of_the_recurrent_net(playground: Browser) -> None:
    playground.driver.find_element("xpath", "//label[contains(., 'Recurrent')]").click()
    playground.wait(lambda: len(_levels(playground)) == 50)
    playground.driver.find_element("css selector", "#recurrent-steps").send_keys(webdriver.Keys.END)
    playground.wait(lambda: len(_levels(playground)) == 200)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_of_an_experiment_draws_all_its_pictures(
    browser: Browser, tmp_path: Path, dark: bool
) -> None:
    path = tmp_path / "lab.html"
    path.write_text(render_page([run(experiment("activations").of_size(quick=True))]), encoding="utf-8")
    browser.open(path, dark=dark)
    assert browser.value("document.documentElement.dataset.pictures") == "drawn"
    frames = browser.driver.find_elements("css selector", ".frame svg")
    assert frames
    assert all(frame.size["width"] > 200 for frame in frames)
    assert browser.problems() == []


def _drawn(browser: Browser) -> object:
    return browser.value("document.documentElement.dataset.picture")


def _levels(browser: Browser) -> list[float]:
    found: list[float] = json.loads(browser.value("document.documentElement.dataset.levels || '[]'"))
    return found
