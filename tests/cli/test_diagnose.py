"""``evenflow diagnose RUN`` and the options that judging commands share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty steps of a deep sigmoid net, whose gradient vanishes."""
    path = tmp_path_factory.mktemp("runs") / "sigmoid"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [part for _ in range(12) for part in (nn.Linear(32, 32), nn.Sigmoid())]
        model = nn.Sequential(*layers, nn.Linear(32, 4))
        inputs, labels = torch.randn(64, 32), torch.randint(4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ef.watch(model, optimizer, path=path, budget=None) as watched:
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            watched.log(loss=loss)
    return path


def _diagnose(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


def test_a_run_is_judged_and_shown(run: Path) -> None:
    result = _diagnose(run)
    assert result.exit_code == 1, result.output
    assert "vanishing gradient" in result.output
    assert "30 sampled" in result.output


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from evenflow.cli import main; main(['diagnose', {str(run)!r}, '--json', '-'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert any(one["symptom"] == "vanishing_gradient" for one in json.loads(done.stdout)["findings"])


def test_a_page_holds_the_pictures_of_the_run(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="the package vl-convert-python is not installed")
    page = tmp_path / "run.html"
    _diagnose(run, "--html", page)
    text = page.read_text(encoding="utf-8")
    assert "Loss over training" in text
    assert "Gradient by layer over training" in text
    again = _diagnose(run, "--html", page)
    assert again.exit_code == 2
    assert "exists. Name another file" in again.output


def test_a_baseline_accepts_todays_findings(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    assert _diagnose(run, "--write-baseline", path).exit_code == 0
    result = _diagnose(run, "--baseline", path)
    assert result.exit_code == 0, result.output
    assert "suppressed" in result.output


def test_settings_of_the_project_hold(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.evenflow]\nselect = ["EF701"]')
    monkeypatch.chdir(tmp_path)
    assert _diagnose(run).exit_code == 0
    assert _diagnose(run, "--select", "EF101").exit_code == 1


def test_outputs_for_programs(run: Path) -> None:
    assert json.loads(_diagnose(run, "--sarif", "-").stdout)["runs"][0]["results"]
    assert _diagnose(run, "--github").stdout.startswith("::")
    both = _diagnose(run, "--sarif", "-", "--json", "-")
    assert both.exit_code == 2
    assert "cannot both go to standard output" in both.output


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    result = _diagnose(tmp_path / "nothing")
    assert result.exit_code == 2
    assert "nothing" in result.output
