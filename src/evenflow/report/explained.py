"""Pages of rules, symptoms and causes as one HTML page that opens offline, with the lab's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from evenflow import __version__
from evenflow.diagnose.laboratory import LabPicture, pictures
from evenflow.report.page import asset


def render_explained(pages: Sequence[str]) -> str:
    """The HTML page.

    Args:
        pages: Markdown, as :func:`evenflow.explain` gives it.
    """
    return _template().render(
        version=__version__,
        title=pages[0].partition("\n")[0].lstrip("# "),
        pages=[_html(page) for page in pages],
        style=asset("style.css"),
    )


def _html(page: str) -> Markup:
    """A page, with the drawing where it has a sketch of it for terminals."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(page)
    for picture in dict.fromkeys(pictures().values()):
        sketch = MarkdownIt().render(f"```\n{picture.sketch()}\n```")
        html = html.replace(sketch, _figure(picture))
    return Markup(html)


def _figure(picture: LabPicture) -> str:
    label = Markup.escape(f"{picture.title}: {picture.y} over {picture.x}")
    return f'<figure role="img" aria-label="{label}">{picture.svg()}</figure>\n'


@cache
def _template() -> Template:
    loader = PackageLoader("evenflow.report")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("explained.html.jinja")
