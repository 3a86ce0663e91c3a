"""The report in a terminal: complete, within its width, on any terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import samples

from evenflow.diagnose.finding import Diagnosis
from evenflow.report import ReportContent, render_terminal

CONTENTS = {
    "vanishing": samples.vanishing(),
    "healthy": samples.healthy(),
    "recurrent": ReportContent(samples.lstm(), Diagnosis()),
    "non_finite": ReportContent(samples.non_finite(), Diagnosis()),
    "deep": samples.deep(),
    "hostile": samples.hostile(),
    "empty": ReportContent(samples.Net().flow(), Diagnosis()),
}


def printed(content: ReportContent, width: int = 80, encoding: str = "utf-8", **options: object) -> str:
    """What arrives at the other end of a pipe."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    render_terminal(content, Console(file=stream, width=width), **options)  # type: ignore[arg-type]
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_line_fits(name: str, width: int, encoding: str) -> None:
    text = printed(CONTENTS[name], width, encoding)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert encoding == "utf-8" or text.isascii()
    assert "\x1b" not in text, "nothing acts on the terminal when piped"


def test_the_whole_report_of_a_small_net() -> None:
    text = printed(ReportContent(samples.mlp(3), samples.vanishing_diagnosis()))
    golden = Path(__file__).parent / "golden" / "small_net.txt"
    assert [line.rstrip() for line in text.splitlines()] == golden.read_text(encoding="utf-8").splitlines()


def test_findings_come_last_with_all_that_is_known() -> None:
    text = printed(samples.vanishing())
    tail = text[text.index("Findings") :]
    assert "✗ error EF101  vanishing gradient at 0  (net.py:12)" in tail
    assert "cause     saturating activation (92 %, confirmed by intervention)  19 sigmoid" in tail
    assert "cause     depth without skip (40 %, suspected)" in tail
    assert "remedy 1  Use ReLU with He initialisation instead of sigmoid." in tail
    assert "▲ warning EF105  saturation at 1" in tail
    assert tail.rstrip().endswith("evenflow explain EF101 EF105")


def test_a_long_model_is_shortened_and_says_so() -> None:
    text = printed(samples.deep())
    assert len(text.splitlines()) < 110
    assert re.search(r"⋮ 242 more, \S+ to \S+   \(all of them: --full\)", text)
    assert "499 places without parameters not shown" in text
    assert "500  Linear" in text, "the place of the finding is shown"
    assert re.search(r"<loss> … \d+ \(\d+\)", text), "the waterfall joins neighbours"


def test_full_shows_every_place() -> None:
    text = printed(samples.deep(), full=True)
    assert "more" not in text
    assert "not shown" not in text
    shown = re.findall(r"^  (\d+) +(?:Linear|Tanh) ", text, re.MULTILINE)
    assert len(shown) == 999 + 999 - 1, "every place as a bar; every step but that of the first layer"


def test_how_to_see_all_is_the_callers_word() -> None:
    assert "(all of them: full=True)" in printed(samples.deep(), see_all="full=True")


def test_states_without_a_level_are_named() -> None:
    text = printed(CONTENTS["non_finite"])
    assert "93 % NaN or infinite" in text
    assert re.search(r"1 +Linear +0 │ all zero", text)
    assert "to zero" in text
    assert "no gradient arrives" in printed(samples.healthy())


def test_time_steps_have_both_ends() -> None:
    assert re.search(r"lstm:hidden_l0 +t=0 +4\.1e-26 ▁.*█ 1\.0e-4 +t=99", printed(CONTENTS["recurrent"]))


def test_markup_and_escapes_of_names_stay_text() -> None:
    raw = io.StringIO()
    console = Console(
        file=raw, width=200, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    render_terminal(samples.hostile(), console)
    text = raw.getvalue()
    for sentence in ("The gradient vanishes at {}.", "{} is small", "seen at {}", "rename {}"):
        assert sentence.format("[bold red]loud[/bold red]") in text
    assert r"\x1b[2J" in text
    escapes = set(re.findall(r"\x1b(?!\[[0-9;]*m)", text))
    assert not escapes, "only colours may act"
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f]", text)


def test_colour_is_not_the_only_sign() -> None:
    plain = printed(samples.vanishing())
    raw = io.StringIO()
    render_terminal(
        samples.vanishing(), Console(file=raw, width=80, force_terminal=True, color_system="standard")
    )
    without = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue())
    assert [line.rstrip() for line in without.splitlines()] == [line.rstrip() for line in plain.splitlines()]
