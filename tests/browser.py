"""A headless Chromium for tests: started and driven by selenium, asked over the DevTools protocol.

References:
    https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

NEEDED = [
    pytest.mark.skipif(
        not (_CHROMIUM and _DRIVER), reason="no browser: apt-get install chromium chromium-driver"
    ),
    # urllib3, under selenium, leaves closing its sockets to the garbage collector.
    pytest.mark.filterwarnings("default::ResourceWarning"),
]
"""Marks of a module whose tests open pages."""

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


class Browser:
    """One Chromium with one tab.

    Attributes:
        driver: What selenium makes of it, for clicks, keys and the mouse.
    """

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = _CHROMIUM
        for argument in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
        self.driver.get("about:blank")  # rather than the browser's own first page

    def open(
        self,
        page: Path | str,
        *,
        dark: bool = False,
        width: int = 1200,
        height: int = 1000,
        javascript: bool = True,
    ) -> None:
        """Open a file or an address, and wait until its pictures stand."""
        self.problems(), self.requests()  # what earlier pages left
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setEmulatedMedia", features=scheme)
        self._send("Emulation.setDeviceMetricsOverride", **size)
        self._send("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.driver.get(page.as_uri() if isinstance(page, Path) else page)
        if javascript:
            drawn = "document.documentElement?.dataset"
            self.wait(lambda: self.value(f"{drawn}?.pictures || {drawn}?.picture"))

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, also in a page whose own scripts may not run."""
        reply = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def wait(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        """Wait until something holds."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition())

    def problems(self) -> list[str]:
        """What the console was told since the last time: warnings, errors, refused scripts."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """The addresses that pages (not the browser itself) asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        own = ("chrome://", "chrome-untrusted://")
        return [event["request"]["url"] for event in asked if not event["documentURL"].startswith(own)]

    def quit(self) -> None:
        self.driver.quit()

    def _send(self, method: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(method, parameters)
