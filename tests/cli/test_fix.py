"""``evenflow fix TARGET``: the table, the files and the mistakes."""

from __future__ import annotations

import signal
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.fix import programs
from torch import nn

import evenflow as ef
from evenflow.cli import main, output
from evenflow.errors import EvenflowError
from evenflow.fix.track import Track


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
        ([], {"ignore": [], "insist": False, "minutes": None}),
        (["--minutes", "1.5"], {"minutes": 1.5}),
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


@pytest.mark.parametrize(
    ("why", "code", "told"),
    [
        ("interrupted", 130, "Interrupted: not everything was tried."),
        ("time_up", 1, "Time was up: not everything was tried. More --minutes may find more."),
    ],
)
def test_a_search_that_was_cut_short_says_why(
    why: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = programs.too_fast()
    report = ef.check(program, confirm=False, seconds=0.1)
    cut = ef.Outcome(report, interrupted=why == "interrupted", time_up=why == "time_up")
    monkeypatch.setattr(import_module("evenflow.fix"), "fix", lambda program, **given: cut)
    result = _fix("tests.fix.programs:too_fast")
    assert result.exit_code == code
    assert told in result.output


def test_sigterm_acts_as_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def killed(program: ef.Program, **given: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(import_module("evenflow.fix"), "fix", killed)
    result = _fix("tests.fix.programs:too_fast")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "Interrupted.")
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_terminal_each_stage_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def tracked(program: ef.Program, *, track: Track, **given: object) -> None:
        assert list(track("race, 10 steps", iter([1, 2, 3]), 3)) == [1, 2, 3]
        assert list(track("trials, 20 steps", [], 0)) == []
        raise EvenflowError("enough")

    monkeypatch.setattr(import_module("evenflow.fix"), "fix", tracked)
    said = _fix("tests.fix.programs:too_fast").stderr.splitlines()
    assert said[:2] == ["checking", "race, 10 steps: 3 to do"]
    monkeypatch.setattr(output, "PAUSE", 0.0)
    said = _fix("tests.fix.programs:too_fast").stderr.splitlines()
    assert said[2:4] == ["race, 10 steps: 1 of 3 done", "race, 10 steps: 2 of 3 done"]
