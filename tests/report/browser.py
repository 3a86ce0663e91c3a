"""A headless Chromium, driven over the DevTools protocol through a pipe.

Nothing but the standard library is needed; the browser gets a profile of its
own that is thrown away. The protocol: messages are JSON texts, each ended by a
zero byte, written to the browser's descriptor 3 and read from its descriptor 4.

References:
    https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_LAUNCH = """
import fcntl, os, sys
reading, writing, *command = sys.argv[1:]
aside = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in (reading, writing)]
os.dup2(aside[0], 3)
os.dup2(aside[1], 4)
os.execvp(command[0], command)
"""
"""Puts the pipe where the browser looks for it; descriptors 3 and 4 may be taken here."""


def find() -> str | None:
    """Path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser process; a context manager."""

    def __init__(self, executable: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="evenflow-browser-", ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
        ]
        os.set_inheritable(to_browser, True)
        os.set_inheritable(from_browser, True)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), executable, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._in, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._in, selectors.EVENT_READ)
        self._buffer = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._selector.close()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def send(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a command and wait for its result; events that arrive meanwhile are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def wait(self, method: str, session: str) -> None:
        """Wait for an event of a page, unless it is among those already kept."""
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._read())

    def close_pages(self) -> None:
        """Close all pages and forget their events."""
        for target in self.send("Target.getTargets")["targetInfos"]:
            if target["type"] == "page":
                self.send("Target.closeTarget", targetId=target["targetId"])
        self.events.clear()

    def _read(self, seconds: float = 120.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not self._selector.select(max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError(f"The browser said nothing for {seconds:.0f} s.")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise RuntimeError(f"The browser ended (exit code {self._process.poll()}).")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        result: dict[str, Any] = json.loads(message)
        return result


class Page:
    """One page that was opened and drawn.

    Attributes:
        requests: URLs that the page asked for.
        problems: Errors and warnings of the console, exceptions included.
    """

    def __init__(
        self, browser: Browser, path: Path, *, dark: bool = False, width: int = 1200, javascript: bool = True
    ) -> None:
        self._browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._send("Emulation.setEmulatedMedia", features=scheme)
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        self._send("Emulation.setScriptExecutionDisabled", value=not javascript)
        reply = self._send("Page.navigate", url=path.as_uri())
        if "errorText" in reply:
            raise RuntimeError(f"{path}: {reply['errorText']}")
        browser.wait("Page.loadEventFired", self._session)
        deadline = time.monotonic() + 120.0
        while javascript and not self.value("document.documentElement.dataset.pictures"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page was not drawn within 2 min: {self.problems}")
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    @property
    def requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self._events("Network.requestWillBeSent")]

    @property
    def problems(self) -> list[str]:
        logged = [e["params"]["entry"] for e in self._events("Log.entryAdded")]
        called = [e["params"] for e in self._events("Runtime.consoleAPICalled")]
        return [
            *(entry["text"] for entry in logged if entry["level"] in ("warning", "error")),
            *(str(call["args"]) for call in called if call["type"] in ("warning", "error", "assert")),
            *(str(e["params"]["exceptionDetails"]) for e in self._events("Runtime.exceptionThrown")),
        ]

    def _events(self, method: str) -> list[dict[str, Any]]:
        return [
            e
            for e in self._browser.events
            if e.get("method") == method and e.get("sessionId") == self._session
        ]

    def _send(self, method: str, **parameters: Any) -> Any:
        return self._browser.send(method, self._session, **parameters)
