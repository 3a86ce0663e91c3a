"""The playground's server: who is answered, and with what."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from evenflow.cli.lab.playground import HOST, Playground

pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Playground]:
    with Playground() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _get(server: Playground, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, server.server_address[1], timeout=30)
    try:
        connection.request(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def _profile(server: Playground, **query: Any) -> tuple[int, dict[str, Any]]:
    status, text = _get(server, "/profile?" + urlencode(query, doseq=True))
    return status, json.loads(text)


def test_only_loopback_is_listened_on(server: Playground) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_holds_every_setting(server: Playground) -> None:
    status, page = _get(server, "/")
    assert status == 200
    for name in ("depth", "width", "activation", "init", "norm", "skips", "steps", "cell"):
        assert f'name="{name}"' in page


def test_a_profile_is_theory_in_numbers_and_picture(server: Playground) -> None:
    status, reply = _profile(server, net="feed-forward", depth=20)
    assert status == 200
    assert reply["levels"][0] == pytest.approx(-16.17, abs=0.01)
    assert reply["headline"].startswith("The gradient vanishes by 16.2 decades: a factor of 0.141")
    assert reply["measured"] is None
    assert reply["idle"] == ["bias_std", "gain"]
    assert len(reply["rows"]) == 20


def test_real_nets_are_measured_on_request(server: Playground) -> None:
    _, reply = _profile(server, net="feed-forward", depth=5, width=32, seed=[0, 1])
    assert reply["head"] == ["place", "theory", "real net 1", "real net 2"]
    assert reply["measured"].startswith("Decades from the last place to the first, measured: ")


def test_a_gradient_that_is_gone_is_said_to_be(server: Playground) -> None:
    status, reply = _profile(server, net="feed-forward", depth=80, width=16, seed=0)
    assert status == 200
    assert "nothing arrives" in reply["measured"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"net": "resnet"}, "There is no net 'resnet' here. There are: feed-forward, recurrent."),
        ({}, "There is no net '' here."),
        ({"net": "recurrent", "steps": "1"}, "steps: expected 2 to 200, got 1."),
        ({"net": "recurrent", "seed": "-1"}, "seed: expected up to 16 whole numbers"),
        ({"net": "recurrent", "seed": list(range(17))}, "seed: expected up to 16 whole numbers"),
    ],
)
def test_mistakes_are_named(server: Playground, query: dict[str, Any], message: str) -> None:
    status, reply = _profile(server, **query)
    assert status == 400
    assert reply["error"].startswith(message)


def test_other_pages_and_forged_names_are_turned_away(server: Playground) -> None:
    assert _get(server, "/", Host="evil.example")[0] == 403
    assert _get(server, "/profile?net=recurrent", Sec_Fetch_Site="cross-site")[0] == 403
    assert _get(server, "/nothing")[0] == 404
