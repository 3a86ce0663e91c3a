"""``evenflow fix TARGET``: the table, the files and the mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.fix import programs
from torch import nn

import evenflow as ef
from evenflow.cli import main


def _fix(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["fix", *map(str, arguments)])


def test_a_patch_is_found_printed_and_written(tmp_path: Path) -> None:
    path = tmp_path / "patch.json"
    result = _fix("tests.fix.programs:too_fast", "--write", path, "--code", "--all", "--seeds", 2)
    assert result.exit_code == 0, result.output
    assert "confirmed" in result.output
    assert "def edit_" in result.output
    assert "refuted" in result.output
    model = programs.chain(2, nn.ReLU)(0)
    assert isinstance(ef.apply(model, str(path)), nn.Module)
    again = _fix("tests.fix.programs:too_fast", "--write", path)
    assert again.exit_code == 2
    assert "exists" in again.output


def test_a_healthy_program_is_left_alone() -> None:
    result = _fix("tests.fix.programs:healthy")
    assert result.exit_code == 0, result.output
    assert "Nothing to fix." in result.output


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tests.fix.programs:points", "gave tuple. Expected an evenflow.Program"),
        ("tests.fix.programs:nothing", "has no 'nothing'"),
    ],
)
def test_what_is_no_program_is_told(target: str, message: str) -> None:
    result = _fix(target)
    assert result.exit_code == 2
    assert message in result.output
