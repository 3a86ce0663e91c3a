"""Text: acting characters become visible, numbers keep their digits."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from evenflow.report.text import (
    clip,
    decades,
    factor,
    percent,
    place_name,
    plural,
    power_of_ten,
    power_of_two,
    printable,
    scientific,
    shorten,
    step_name,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layers.0.fc", "layers.0.fc"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("a\u200bb\u00adc", r"a\u200bb\xadc"),
        ("\u2028\ud800", r"\u2028\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("層 café 🙂 שלום", "層 café 🙂 שלום"),
        ("<b>[red]{{x}}", "<b>[red]{{x}}"),
    ],
)
def test_characters_that_act_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    assert not {unicodedata.category(c) for c in printable(text)} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("place", "name"),
    [("", "(model)"), (":add", "(model):add"), ("a.b", "a.b"), ("<loss>", "<loss>"), ("\n", r"\n")],
)
def test_every_place_has_a_name(place: str, name: str) -> None:
    assert place_name(place) == name


@pytest.mark.parametrize(
    ("width", "short"),
    [(40, "transformer.h.11.mlp.c_fc"), (20, "…h.11.mlp.c_fc"), (10, "…mlp.c_fc"), (6, "…c_fc"), (3, "…fc")],
)
def test_a_path_loses_its_first_parts(width: int, short: str) -> None:
    assert shorten("transformer.h.11.mlp.c_fc", width) == short


@given(st.text(), st.integers(1, 40))
def test_cut_text_fits(text: str, width: int) -> None:
    shown = printable(text)
    assert cell_len(shorten(shown, width)) <= width
    assert cell_len(clip(shown, width)) <= width
    if cell_len(shown) <= width:
        assert shorten(shown, width) == clip(shown, width) == shown


def test_clip_keeps_the_beginning() -> None:
    assert clip("AdaptiveAvgPool2d", 10) == "AdaptiveA…"


@given(st.floats(-320, 300))
def test_a_level_is_written_in_two_digits(level: float) -> None:
    mantissa, _, exponent = scientific(level).partition("e")
    assert 1.0 <= float(mantissa) < 10.0
    assert math.log10(float(mantissa)) + int(exponent) == pytest.approx(level, abs=math.log10(1.05) + 1e-9)


@pytest.mark.parametrize(
    ("log10", "text", "times"),
    [
        (-16.153, "−16.15", "÷ 1.4e16"),
        (0.3010, "+0.30", "× 2"),
        (3.5538, "+3.55", "× 3600"),
        (-1e-9, "0.00", "÷ 1"),
        (-math.inf, "to zero", "to zero"),
        (math.inf, "from zero", "from zero"),
        (math.nan, "?", "?"),
    ],
)
def test_gains(log10: float, text: str, times: str) -> None:
    assert (decades(log10), factor(log10)) == (text, times)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.92, "92 %"),
        (0.042, "4.2 %"),
        (0.0004, "< 0.1 %"),
        (0.99999, "> 99.9 %"),
        (0.994, "99.4 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_small_words() -> None:
    assert (power_of_ten(-8), power_of_ten(0), power_of_ten(12)) == ("10⁻⁸", "1", "10¹²")
    assert (power_of_two(-24), power_of_two(0)) == ("2⁻²⁴", "1")
    assert (plural(1, "layer"), plural(2, "layer"), plural(2, "stretch", "stretches")) == (
        "1 layer",
        "2 layers",
        "2 stretches",
    )
    assert (step_name("a", "a", 1), step_name("a", "", 7)) == ("a", "a … (model) (7)")
