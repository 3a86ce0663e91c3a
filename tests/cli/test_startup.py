"""Whole processes: what needs no model answers without PyTorch. Times are in benchmarks/startup.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "scipy", "jinja2", "transformers"}


def _process(
    *arguments: str, variables: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """``python -m evenflow`` in a process of its own, and the packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evenflow", *arguments],
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["check", "--help"], ["--version"], ["explain", "EF101"], ["completion", "bash"]],
)
def test_what_needs_no_model_loads_no_torch(arguments: list[str]) -> None:
    done, loaded = _process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "click" in loaded, "the modules were not listed, so this test would prove nothing"
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "offered"),
    [("evenflow ch", {"check"}), ("evenflow explain saturat", {"saturation", "saturating_activation"})],
)
def test_completion_offers_words_and_loads_no_torch(words: str, offered: set[str]) -> None:
    variables = {
        "_EVENFLOW_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done, loaded = _process(variables=variables)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered
    assert loaded & HEAVY == set()


def test_the_installed_command_is_the_module() -> None:
    done, _ = _process("--version")
    script = os.path.join(os.path.dirname(sys.executable), "evenflow")
    assert (
        subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
        == done.stdout
    )
