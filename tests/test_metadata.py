"""What pyproject.toml, constraints.txt, the version and the change log say of each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import evenflow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"
]


def _wanted() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [PROJECT["project"]["dependencies"], *extras, *PROJECT["dependency-groups"].values()]
    return sorted({requirement for group in groups for requirement in group})


@pytest.mark.parametrize("line", PINS)
def test_a_pin_is_exact_and_for_every_machine(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), "no local version, path or range"


@pytest.mark.parametrize("text", _wanted())
def test_every_dependency_is_pinned_within_its_range(text: str) -> None:
    pins = {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in PINS)
    }
    requirement = Requirement(text)
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == evenflow.__version__
    assert f"## [{evenflow.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_names_exactly_two_dev_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\./dev [a-z]+", readme)) == {"./dev demo", "./dev test"}


def test_ci_runs_the_readme_test_command() -> None:
    assert "./dev test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
