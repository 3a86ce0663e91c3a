"""Runs that a test leaves open are not finished when Python exits: their folders are gone by then."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_exit_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evenflow.store.writer.atexit.register", lambda function: None)
