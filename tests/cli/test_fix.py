"""``evenflow fix TARGET``: the table, the files and the mistakes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.fix import programs
from torch import nn

import evenflow as ef
from evenflow.cli import main
from evenflow.errors import EvenflowError


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
    ("arguments", "message"),
    [
        (["--ignore", "skip,nonsense", "tests.fix.programs:sigmoid"], "no remedy nonsense"),
        (["--ignore", "nonsense", __file__], "no remedy nonsense"),
        (["--insist", __file__], "--insist is for an evenflow.Program"),
    ],
)
def test_a_choice_that_cannot_be_is_told(arguments: list[str], message: str) -> None:
    result = _fix(*arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], {"ignore": [], "insist": False}),
        (
            ["--insist", "--ignore", "skip,clip", "--ignore", "leak"],
            {"ignore": ["skip", "clip", "leak"], "insist": True},
        ),
    ],
)
def test_remedies_and_notes_are_chosen(
    options: list[str], wanted: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def fixed(program: ef.Program, **given: object) -> None:
        asked.update(given)
        raise EvenflowError("enough")

    monkeypatch.setattr(import_module("evenflow.fix"), "fix", fixed)
    assert "enough" in _fix(*options, "tests.fix.programs:sigmoid").output
    assert {name: asked[name] for name in wanted} == wanted


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
