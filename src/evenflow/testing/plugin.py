"""The pytest plugin: the fixture ``assert_healthy`` and the option ``--evenflow-html``.

pytest loads this module at every start, so nothing heavy is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from evenflow.check import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--evenflow-html``."""
    parser.getgroup("evenflow").addoption(
        "--evenflow-html",
        metavar="DIR",
        help="Write a page of pictures into DIR for every assert_healthy that fails.",
    )


@pytest.fixture(name="assert_healthy")
def _assert_healthy(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """Check a model on one batch, and fail if its gradients do not flow: see evenflow.testing."""
    __tracebackhide__ = True
    folder = request.config.getoption("--evenflow-html")

    def assert_healthy(*args: Any, **kwargs: Any) -> Report:
        __tracebackhide__ = True
        from evenflow import testing

        try:
            return testing.assert_healthy(*args, **kwargs)
        except testing.UnhealthyError as error:
            if folder is not None:
                path = _write(Path(folder), request.node.nodeid, error.report)
                error.args = (f"{error.args[0]}\nPictures: {path}",)
            raise

    return assert_healthy


def _write(folder: Path, test: str, report: Report) -> Path:
    from evenflow.report import ReportContent, render_html

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', test)}.html"
    content = ReportContent(report.flow, report.diagnosis, title=test, run=report.run)
    path.write_text(render_html(content), encoding="utf-8")
    return path
