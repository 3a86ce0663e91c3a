"""What is committed under docs/ is what the rules say, and what the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from docs.build import pages

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", pages())
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == pages()[name], "run ./dev docs"


def test_no_page_is_left_of_a_rule_that_is_gone() -> None:
    there = {f"rules/{path.name}" for path in (ROOT / "docs" / "rules").glob("*.md")}
    assert there == {name for name in pages() if name.startswith("rules/")}


def test_the_python_of_the_readme_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # it leaves a run there
    parts = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(parts) == 2
    exec(compile("\n".join(parts), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "EF101 vanishing_gradient at " in out
    assert "because of saturating_activation" in out


def test_the_python_of_the_chapter_on_watching_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(
        compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), "watching.md", "exec"), names
    )
    assert "40 of 40 steps were sampled" in capsys.readouterr().out
    assert names["wide"]["step"].to_list() == list(range(40))
    before, after = (
        names["wide"][f"gradient_norm_{when}_clipping"].to_numpy() for when in ("before", "after")
    )
    assert (after <= before * (1 + 1e-6)).all()
    assert (after < 0.9 * before).any(), "some steps are clipped"
    assert len(names["gradients"]) == 40 * 6


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
