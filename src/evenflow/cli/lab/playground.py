"""The playground: a page with sliders, answered by a server that only this machine can reach.

    GET /                    the page
    GET /profile?net=…&…     a net's profile as JSON: picture, numbers, one sentence;
                             with ``seed=0&seed=1`` real nets over the expected curve

The server keeps nothing. It listens on the loopback address and answers only
requests that name it as their host and come from its own page, so that no other
web page, even through a forged name, can make it work.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from evenflow import __version__
from evenflow.cli.lab.charts import spec
from evenflow.errors import EvenflowError
from evenflow.lab.picture import Axis, Curve, Lines, Origin
from evenflow.lab.playground import NETS, Net, Profile, SettingError, Slider
from evenflow.lab.verdict import number
from evenflow.report.page import asset, drawing_library, script_sources

HOST = "127.0.0.1"
SEEDS = 3
"""Real nets that the button measures."""
MOST_SEEDS = 16


@final
class Playground(ThreadingHTTPServer):
    """The server.

    Args:
        port: To listen on; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.page = render_page().encode()
        self.measuring = threading.Lock()
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Playground
    server_version = "evenflow"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"This server answers this machine only.")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._send(
                HTTPStatus.FORBIDDEN, "text/plain", b"Requests of other pages are not answered."
            )
        url = urlsplit(self.path)
        if url.path == "/":
            return self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        if url.path == "/profile":
            return self._profile(parse_qs(url.query))
        return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is nothing here. The page is at /.")

    def _profile(self, query: Mapping[str, Sequence[str]]) -> None:
        try:
            net, seeds = _read(query)
            expected = net.expected()
            with self.server.measuring:
                measured = [net.measured(seed) for seed in seeds]
        except EvenflowError as error:
            return self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        return self._json(HTTPStatus.OK, answer(net, expected, measured))

    def _json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a line for each move of a slider helps nobody."""


def render_page() -> str:
    """The page.

    Raises:
        MissingPackageError: The package vl-convert-python, which holds the
            drawing library, is not installed.
    """
    library, script = drawing_library(), asset("playground.js", "evenflow.cli.lab")
    template = _environment().get_template("playground.html.jinja")
    return template.render(
        version=__version__,
        nets={name: (kind, kind()) for name, kind in NETS.items()},
        is_slider=lambda control: isinstance(control, Slider),
        seeds=SEEDS,
        style=asset("style.css"),
        own_style=asset("playground.css", "evenflow.cli.lab"),
        library=library,
        script=script,
        script_sources=script_sources(library, script),
    )


def answer(net: Net, expected: Profile, measured: Sequence[Profile]) -> dict[str, Any]:
    """What the page shows of a net."""
    places = tuple(float(place) for place in range(1, len(expected.levels) + 1))
    band = {"low": expected.low, "high": expected.high}
    curves = [Curve("theory", places, expected.levels, Origin.EXPECTED, **band)]
    curves += [
        Curve(f"real net {number_}" if len(measured) > 1 else "real net", places, profile.levels)
        for number_, profile in enumerate(measured, start=1)
    ]
    picture = Lines(
        "profile",
        "Gradient along the net",
        "",
        Axis(net.places),
        Axis("‖δ‖ there / ‖δ‖ at the end", decades=True),
        tuple(curves),
    )
    return {
        "headline": headline(expected),
        "tone": _tone(expected),
        "doubts": list(expected.doubts),
        "measured": _measured(measured),
        "idle": sorted(net.idle),
        "spec": spec(picture),
        "head": ["place", *(curve.name for curve in curves)],
        "rows": [
            [str(place), *(number(curve.y[place - 1] or 0.0) for curve in curves)]
            for place in range(1, len(places) + 1)
        ],
        "levels": list(expected.levels),
    }


def headline(expected: Profile) -> str:
    """What becomes of the gradient, in one sentence."""
    steps = len(expected.levels) - 1
    factor = 10 ** (expected.total / steps)
    each = f"a factor of {factor:.3g} at each of {steps} steps"
    if abs(expected.total) < 1:
        return f"The gradient arrives almost whole: {each}."
    word = "vanishes" if expected.total < 0 else "explodes"
    return f"The gradient {word} by {abs(expected.total):.1f} decades: {each}."


def _tone(expected: Profile) -> str:
    """Three decades cost float16 its range and SGD any sense of one learning rate for all layers."""
    return "ok" if abs(expected.total) < 1 else "warning" if abs(expected.total) < 3 else "error"


def _measured(measured: Sequence[Profile]) -> str | None:
    if not measured:
        return None
    totals = [profile.total for profile in measured]
    if min(totals) == float("-inf"):
        return (
            "In the real net nothing arrives: the gradient falls below the smallest float32, 10⁻⁴⁵, and is 0."
        )
    told = ", ".join(f"{total:.2f}" for total in totals)
    return f"Decades from the last place to the first, measured: {told}."


def _read(query: Mapping[str, Sequence[str]]) -> tuple[Net, list[int]]:
    values = {name: found[-1] for name, found in query.items() if name not in ("net", "seed")}
    (kind,) = query.get("net", [""])[-1:]
    if kind not in NETS:
        raise SettingError(f"There is no net {kind!r} here. There are: {', '.join(NETS)}.")
    seeds = query.get("seed", [])
    if len(seeds) > MOST_SEEDS or not all(
        seed.isascii() and seed.isdigit() and len(seed) < 10 for seed in seeds
    ):
        raise SettingError(f"seed: expected up to {MOST_SEEDS} whole numbers, got {', '.join(seeds)!r}.")
    return NETS[kind].of(values), [int(seed) for seed in seeds]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("evenflow.cli.lab"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
