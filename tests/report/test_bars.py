"""Pictures of characters: lengths say what the numbers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.report.bars import ASCII, UNICODE, Glyphs, Scale, axis, bar, span, sparkline

LEVEL = st.floats(-40, 10)
GLYPHS = pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])


def length(drawn: str, glyphs: Glyphs) -> float:
    """Cells that are drawn, eighths of a cell included."""
    ink = drawn.lstrip(" ")
    if ink and ink[-1] in glyphs.parts:
        return len(ink) - 1 + (glyphs.parts.index(ink[-1]) + 1) / 8
    return float(len(ink))


def test_the_scale_is_in_whole_decades_and_not_too_short() -> None:
    assert Scale.of([-3.2, 1.1], 50) == Scale(-4, 2, 50)
    assert Scale.of([-0.2, -0.1], 50) == Scale(-4, 0, 50)
    assert Scale.of([], 50) == Scale(-4, 0, 50)


@GLYPHS
@given(level=st.floats(-10, 0))
def test_a_bar_is_as_long_as_its_level_is_high(glyphs: Glyphs, level: float) -> None:
    scale = Scale(-10, 0, 60)
    exact = (level + 10) * 6
    assert length(bar(scale, level, glyphs), glyphs) == pytest.approx(
        exact, abs=1.0 if glyphs is ASCII else 0.126
    )


@GLYPHS
@given(start=LEVEL, stop=LEVEL, width=st.integers(5, 120))
def test_a_floating_bar_lies_where_its_ends_are(
    glyphs: Glyphs, start: float, stop: float, width: int
) -> None:
    scale = Scale(-40, 10, width)
    drawn = span(scale, start, stop, glyphs)
    assert len(drawn) <= width
    assert drawn == span(scale, stop, start, glyphs)
    if drawn:
        left = len(drawn) - len(drawn.lstrip(" "))
        right = left + length(drawn, glyphs)
        assert left == pytest.approx(scale.cell(min(start, stop)), abs=0.5)
        assert right == pytest.approx(scale.cell(max(start, stop)), abs=0.51 if glyphs is ASCII else 0.126)
    else:
        assert scale.cell(start) == pytest.approx(scale.cell(stop), abs=1.0)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
def test_a_level_outside_the_scale_stays_in_the_picture(glyphs: Glyphs) -> None:
    scale = Scale(-4, 0, 20)
    assert bar(scale, 7.0, glyphs) == glyphs.full * 20
    assert len(bar(scale, -9.0, glyphs)) == 1, "the smallest level still shows a trace"


def test_the_axis_puts_each_tick_at_its_cell() -> None:
    scale = Scale(-20, 0, 60)
    line = axis(scale, UNICODE)
    assert len(line) <= 60
    for tick in scale.ticks():
        cell = min(int(scale.cell(tick)), 59)
        assert line[cell] == "╷", f"no tick for 10^{tick} in {line!r}"
    assert "╷10⁻²⁰" in line
    assert line.endswith("1╷"), "the last label stands left of its tick"
    assert axis(scale, ASCII).startswith("|1e-20")


@given(low=st.integers(-60, 0), length=st.integers(1, 60), width=st.integers(9, 120))
def test_an_axis_never_overflows(low: int, length: int, width: int) -> None:
    scale = Scale(low, low + length, width)
    assert len(axis(scale, UNICODE)) <= width
    assert len(axis(scale, ASCII)) <= width


def test_a_sparkline_rises_with_the_levels_and_leaves_gaps() -> None:
    scale = Scale(-8, 0, 9)
    levels = [-8.0, -7.0, None, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0]
    assert sparkline(levels, scale, UNICODE) == "▁▂ ▄▅▅▆▇█"
    assert len(sparkline([-1.0] * 500, scale, UNICODE)) == 9
    assert sparkline([-8.0, 0.0], scale, ASCII) == "_#"


def test_ascii_spells_what_it_lacks() -> None:
    assert ASCII.text("÷ 10⁻⁸ … ε → 0 · 層") == "/ 10\\u207b\\u2078 ... eps -> 0 * \\u5c64"
    assert ASCII.power_of_ten(-8) == "1e-8"
    assert UNICODE.text("÷ 層") == "÷ 層"
