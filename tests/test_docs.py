"""What is committed under docs/ is what the rules say, and what the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
