"""assert_healthy and the pytest plugin, as a user's suite meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evenflow.testing import UnhealthyError, assert_healthy

pytest_plugins = ["pytester"]


def _net(depth: int, act: type[nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(32, 32), act())])


def _batch() -> torch.Tensor:
    return torch.randn(32, 32, generator=torch.Generator().manual_seed(0))


def test_a_healthy_model_passes_and_gives_its_report() -> None:
    assert assert_healthy(_net(3, nn.Tanh), _batch()).healthy


def test_an_ill_model_fails_with_the_findings() -> None:
    with pytest.raises(UnhealthyError) as error:
        assert_healthy(_net(20, nn.Sigmoid), _batch())
    text = str(error.value)
    assert "EF101 vanishing gradient at " in text
    assert "Causes: saturating activation" in text
    assert "evenflow explain EF101" in text
    assert not error.value.report.healthy


def test_the_project_may_accept_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = '[[tool.evenflow.suppress]]\nrules = ["EF1", "EF2", "EF3"]\nreason = "It is a demonstration."'
    (tmp_path / "pyproject.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    report = assert_healthy(_net(20, nn.Sigmoid), _batch())
    assert "EF101" in [one.finding.code for one in report.diagnosis.suppressed]


def test_the_plugin_gives_a_fixture_and_writes_pages(pytester: pytest.Pytester) -> None:
    pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        def net(depth):
            torch.manual_seed(0)
            return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(32, 32), nn.Sigmoid())])

        def test_ill(assert_healthy):
            assert_healthy(net(20), torch.randn(32, 32))

        def test_healthy(assert_healthy):
            assert_healthy(net(2), torch.randn(32, 32))
        """
    )
    result = pytester.runpytest_inprocess("-p", "evenflow.testing.plugin", "--evenflow-html", "pages")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*EF101 vanishing gradient*", "*Pictures: pages*test_ill.html"])
    assert list((pytester.path / "pages").glob("*test_ill.html"))
