"""The command line as a user meets it: output, exit codes, and the text of every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tests.cli.conftest import line_of

from evenflow.cli import main


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="evenflow")


def _error(result: Result) -> str:
    """What a failed command says after ``Error: ``; it must have exit code 2 and no output."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr.partition("Error: ")[2].rstrip("\n")


# --- the group ---


COMMANDS = main.list_commands(click.Context(main))


def test_help_lists_every_command_with_examples() -> None:
    text = _run("--help").stdout
    listed = text.partition("Commands:\n")[2].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert {"check", "explain", "completion"} <= set(COMMANDS)
    assert "Exit codes: 0 clean, 1 findings, 2 a mistake" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_examples(name: str) -> None:
    text = _run(name, "-h").stdout
    assert f"Usage: evenflow {name}" in text
    examples = text.partition("Examples:\n")[2].splitlines()
    assert sum(line.startswith(f"  evenflow {name}") for line in examples) >= 2


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    assert _error(_run("chek")) == "There is no command 'chek'. Did you mean 'check'?"
    assert _error(_run("zz")) == f"There is no command 'zz'. Commands are: {', '.join(COMMANDS)}."


def test_version() -> None:
    assert _run("--version").stdout == "evenflow 0.1.0\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = _run("completion", shell)
    assert result.exit_code == 0
    assert f"_EVENFLOW_COMPLETE={shell}_complete" in result.stdout


# --- check ---


@pytest.mark.usefixtures("folder")
def test_a_healthy_model_exits_0() -> None:
    result = _run("check", "nets.py:targets")
    assert result.exit_code == 0, result.output
    assert "nets.py:targets" in result.stdout
    assert "No problem found" in result.stdout


@pytest.mark.usefixtures("folder")
def test_findings_exit_1_and_name_symptom_and_cause() -> None:
    result = _run("check", "nets.py:sigmoids")
    assert result.exit_code == 1, result.output
    assert "vanishing gradient" in result.stdout
    assert "saturating activation" in result.stdout


@pytest.mark.usefixtures("folder")
def test_causes_are_tested_unless_that_is_declined() -> None:
    tested, declined, late = (
        " ".join(_run("check", "nets.py:sigmoids", *more).stdout.split())
        for more in ([], ["--no-confirm"], ["--confirm", "1e-9"])
    )
    assert "confirmed)" in tested
    assert "With ReLU instead of sigmoid the gradient changes by 10^" in tested
    assert "suspected)" in declined
    assert "instead of sigmoid" not in declined
    assert "Not tested: the 1e-09 s for testing causes were over." in late


@pytest.mark.usefixtures("folder")
def test_full_prints_every_layer() -> None:
    short, full = (_run("check", "nets.py:sigmoids", *more).stdout for more in ([], ["--full"]))
    assert "--full" in short
    assert "--full" not in full
    assert len(full.splitlines()) > len(short.splitlines())


@pytest.mark.usefixtures("folder")
def test_ignored_rules_raise_no_alarm() -> None:
    assert _run("check", "nets.py:sigmoids", "--ignore", "EF101,EF201", "--ignore", "EF2").exit_code == 0
    assert _run("check", "nets.py:sigmoids", "--select", "vanishing_gradient").exit_code == 1
    assert _run("check", "nets.py:sigmoids", "--select", "exploding_gradient").exit_code == 0
    said = _error(_run("check", "nets.py:broken", "--select", "EF999"))  # before the target's code runs
    assert said.startswith("select: no rule is called 'EF999'.")


@pytest.mark.parametrize("arguments", [["--json"], ["--json", "-"]])
@pytest.mark.usefixtures("folder")
def test_json_on_standard_output_is_json_alone(arguments: list[str]) -> None:
    result = _run("check", "nets.py:noisy", *arguments)
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr.startswith("hello from the model\n")


def test_files_are_written_and_not_overwritten(folder: Path) -> None:
    files = ["--html", "out/flow.html", "--json", "out/flow.json"]
    result = _run("check", "nets.py:pair", *files)
    assert result.exit_code == 0, result.output
    assert result.stderr == "Wrote out/flow.html\nWrote out/flow.json\n"
    assert "</html>" in (folder / "out" / "flow.html").read_text(encoding="utf-8")
    assert isinstance(json.loads((folder / "out" / "flow.json").read_text(encoding="utf-8")), dict)
    said = _error(_run("check", "nets.py:pair", *files))
    assert said == "out/flow.html exists. Name another file, or overwrite it with --force."
    assert _run("check", "nets.py:pair", *files, "--force").exit_code == 0


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "taken").write_text("", encoding="utf-8")
    result = _run("check", "nets.py:pair", "--html", "taken/flow.html")
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: taken/flow.html cannot be written: File exists.\n") or (
        result.stderr.endswith("Error: taken/flow.html cannot be written: Not a directory.\n")
    )


@pytest.mark.usefixtures("folder")
def test_random_inputs_are_told() -> None:
    result = _run("check", "nets.py:alone", "--input", "8x4")
    assert result.exit_code == 0, result.output
    assert "random data from --input: float32 [8, 4]" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing TARGET, such as train.py:build."),
        (
            ["--json", "nets.py:pair"],
            "Missing TARGET, such as train.py:build. --json took 'nets.py:pair' as its FILE",
        ),
        (["nets.py:pear"], "nets.py has no 'pear'. Did you mean 'pair'? It offers: "),
        (["nets.py:pair", "--seed", "x"], "Invalid value for '--seed': 'x' is not a valid integer."),
        (["nets.py:pair", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (
            ["nets.py:broken"],
            f"nets.py:broken raised at nets.py:{line_of('bad width')}:\n    ValueError: bad width",
        ),
        (["nets.py:wrong_shape"], "The model raised RuntimeError in fc (Linear)"),
        (["nets.py:vector_loss"], "The loss "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_a_mistake_says(arguments: list[str], said: str) -> None:
    result = _run("check", *arguments)
    text = _error(result)
    assert text.startswith(said)
    assert "Traceback" not in result.output
    assert len(text.splitlines()) <= 5


@pytest.mark.usefixtures("folder")
def test_debug_shows_the_traceback_above_the_message() -> None:
    result = _run("check", "nets.py:broken", "--debug")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert 'raise ValueError("bad width")' in result.stderr
    assert "Error: nets.py:broken raised at nets.py:" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_fault_of_our_own_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("lost count")

    monkeypatch.setattr("evenflow.cli.target.load_target", fails)
    said = _error(_run("check", "nets.py:pair"))
    assert said.startswith("evenflow itself failed: RuntimeError: lost count (")
    assert said.endswith("Please report it, with the output of the same command and --debug.")


@pytest.mark.usefixtures("folder")
def test_an_interrupt_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evenflow.cli.target.load_target", interrupted)
    result = _run("check", "nets.py:pair")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


# --- explain ---


@pytest.mark.parametrize("words", [["EF101"], ["ef101"], ["vanishing_gradient"], ["vanishing", "gradient"]])
def test_explain_finds_a_page_by_many_words(words: list[str]) -> None:
    result = _run("explain", *words)
    assert result.exit_code == 0
    assert result.stdout.startswith("# EF101 vanishing_gradient\n")


def test_explain_gives_a_page_for_each_of_several_codes() -> None:
    text = _run("explain", "EF101", "EF102").stdout
    assert text.index("# EF101") < text.index("# EF102")


def test_explain_writes_a_page_with_the_picture_of_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run("explain", "EF101", "--html", "page.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>EF101 vanishing_gradient</h1>" in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "▁" not in page  # the drawing stands in place of the sketch
    assert "page.html exists" in _error(_run("explain", "EF101", "--html", "page.html"))


def test_explain_alone_lists_all_pages() -> None:
    text = _run("explain").stdout
    assert "EF101" in text
    assert "saturating_activation" in text


def test_what_explain_says_of_an_unknown_word() -> None:
    assert _error(_run("explain", "qqq")) == (
        "There is no page on 'qqq'. `evenflow explain` without a word lists all pages."
    )
