"""Single pictures as SVG or PNG, for documents and slides.

The specifications are those of the HTML page; here their CSS variables are
replaced by the colours of one theme, read from the page's own style sheet.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from evenflow.errors import EvenflowError, MissingPackageError
from evenflow.report.captions import PictureName
from evenflow.report.content import ReportContent
from evenflow.report.gallery import Picture, pictures

Theme = Literal["light", "dark"]

_FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
"""The first has all superscripts; without it the raised digits come from another face."""


def picture_svg(
    content: ReportContent, name: PictureName | str, *, width: int = 720, theme: Theme = "light"
) -> str:
    """One picture as SVG text.

    Args:
        content: What to draw.
        name: Which picture.
        width: Width of the plot in pixels, axes not included.
        theme: ``"light"`` or ``"dark"``; the ground is transparent.

    Raises:
        EvenflowError: The report has no such picture.
        MissingPackageError: vl-convert-python is not installed.
    """
    svg: str = _vl_convert().vegalite_to_svg(
        static_spec(_find(content, name), width, theme), allowed_base_urls=[]
    )
    return svg


def picture_png(
    content: ReportContent,
    name: PictureName | str,
    *,
    width: int = 720,
    theme: Theme = "light",
    scale: float = 2.0,
) -> bytes:
    """One picture as PNG, ``scale`` times as many pixels; else as :func:`picture_svg`."""
    spec = static_spec(_find(content, name), width, theme)
    png: bytes = _vl_convert().vegalite_to_png(spec, scale=scale, allowed_base_urls=[])
    return png


def static_spec(picture: Picture, width: int, theme: Theme) -> dict[str, Any]:
    """The specification with a fixed width and the colours of one theme."""
    colours = theme_colours(theme)
    text = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colours[match[1]], json.dumps(picture.spec))
    spec: dict[str, Any] = json.loads(text.replace("containerSize()[0]", str(width)))
    spec.pop("autosize")
    spec["config"] |= {"font": _FONT, "text": {**spec["config"]["text"], "font": _FONT}}
    return {**spec, "width": width, "padding": 8}


@cache
def theme_colours(theme: Theme) -> dict[str, str]:
    """Name → colour of the CSS variables of the page."""
    style = files("evenflow.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    colour = r"--([a-z0-9-]+): (#[0-9a-f]{6})"
    colours = dict(re.findall(colour, light))
    return colours | dict(re.findall(colour, dark)) if theme == "dark" else colours


def _find(content: ReportContent, name: PictureName | str) -> Picture:
    found = {str(picture.name): picture for picture in pictures(content)}
    if str(name) not in found:
        raise EvenflowError(
            f"This report has no picture {str(name)!r}. It has: {', '.join(found) or 'none'}. "
            f"Pictures that can be asked for are: {', '.join(PictureName)}."
        )
    return found[str(name)]


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError("vl-convert-python", "Drawing pictures", "html") from error
    return vl_convert
