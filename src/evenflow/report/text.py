"""Text that is safe and short: names from the user, and numbers over many decades.

A module may be called anything: ``</script>``, ``[bold red]``, an escape sequence
that clears the terminal, a character that turns the reading direction. Markup is
escaped where it would be read (jinja2, rich's ``Text``, JSON); here characters
that draw nothing but *do* something are made visible, for every renderer alike.
"""

from __future__ import annotations

import math
import unicodedata

from rich.cells import cell_len

_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that act instead of draw: control, format (bidi marks, zero widths),
lone surrogates, private use, unassigned, line and paragraph separators."""

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def printable(text: str) -> str:
    r"""The text with every character that acts instead of draws written out, e.g. ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(c) if unicodedata.category(c) in _ACTING else c for c in text)


def place_name(place: str) -> str:
    """A place of the Flow as readers see it; the model itself gets a name."""
    return f"{'' if place and not place.startswith(':') else '(model)'}{printable(place)}"


def step_name(first: str, last: str, links: int) -> str:
    """A step of the waterfall: its place, or both ends of a run and how many links it holds."""
    return place_name(first) if links == 1 else f"{place_name(first)} … {place_name(last)} ({links})"


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """Cut the end off a text so that it fits ``width`` terminal cells."""
    if cell_len(text) <= width:
        return text
    return _prefix(text, max(width - cell_len(ellipsis), 0)) + ellipsis


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """A path that fits ``width`` terminal cells: without its first parts, for its end tells most.

    ``transformer.h.11.mlp.c_fc`` → ``…h.11.mlp.c_fc``. Where the last part alone
    is too long, its middle goes.
    """
    parts = text.split(".")
    short = text
    while cell_len(short) > width and len(parts) > 1:
        del parts[0]
        short = ellipsis + ".".join(parts)
    if cell_len(short) <= width:
        return short
    room = max(width - cell_len(ellipsis), 0)
    head, tail = _prefix(text, room // 3), _prefix(text[::-1], room - room // 3)[::-1]
    return head + ellipsis + tail


def power_of_ten(exponent: int) -> str:
    """A tick of a log axis: ``10⁻⁸``; ``1`` for the zeroth power."""
    return "1" if exponent == 0 else "10" + str(exponent).translate(_SUPERSCRIPT)


def power_of_two(exponent: int) -> str:
    """``2⁻²⁴``; ``1`` for the zeroth power."""
    return "1" if exponent == 0 else "2" + str(exponent).translate(_SUPERSCRIPT)


def words(name: str) -> str:
    """A name of the fixed vocabulary as words: ``vanishing_gradient`` → ``vanishing gradient``."""
    return str(name).replace("non_finite", "non-finite").replace("_", " ")


def scientific(log10: float) -> str:
    """A number given by its log10, in two digits: ``3.2e-17``."""
    exponent = math.floor(log10)
    mantissa = round(10 ** (log10 - exponent), 1)
    if mantissa >= 10.0:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+d}".replace("e+", "e")


def decades(log10: float) -> str:
    """A gain in decades with its sign: ``−0.31``, with a true minus."""
    if math.isnan(log10):
        return "?"
    if math.isinf(log10):
        return "to zero" if log10 < 0 else "from zero"
    return f"{log10:+.2f}".replace("-", "−") if abs(log10) >= 0.005 else "0.00"


def factor(log10: float) -> str:
    """A gain as a factor in two digits: ``÷ 3.1e16``, ``× 20``."""
    if not math.isfinite(log10):
        return decades(log10)
    size = abs(log10)
    number = scientific(size) if size >= 4 else f"{float(f'{10**size:.2g}'):g}"
    return f"{'÷' if log10 < 0 else '×'} {number}"


def percent(share: float) -> str:
    """A share: ``12 %``, with one digit more below 10 %, and never rounded to 0 or 100 % when it is not."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    value = 100.0 * share
    if value < 0.1:
        return "< 0.1 %"
    if value > 99.9:
        return "> 99.9 %"
    return f"{value:.1f} %" if value < 10.0 or value > 99.0 else f"{value:.0f} %"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _prefix(text: str, cells: int) -> str:
    taken = 0
    for position, character in enumerate(text):
        taken += cell_len(character)
        if taken > cells:
            return text[:position]
    return text
