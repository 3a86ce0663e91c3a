"""What every HTML page is made of: the drawing library, our own assets, and the hash that lets a script run.

Pages load nothing: styles, scripts and pictures (as data) stand in them. Their
content security policy names the scripts that may run by hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from evenflow.errors import MissingPackageError

_GLOBALS = "window.vegaEmbed = vegaEmbed;"
"""What the bundle offers to our scripts."""


@cache
def drawing_library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Raises:
        MissingPackageError: The package vl-convert-python, which holds it, is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError("vl-convert-python", "The HTML report", "html") from error
    bundle: str = vl_convert.javascript_bundle(snippet=_GLOBALS)
    # Inside <script> only "</script" and "<!--" are read; in strings, the backslash changes nothing.
    return Markup(re.sub(r"<(?=/script|!--)", r"\\x3c", bundle, flags=re.IGNORECASE))


@cache
def asset(name: str, package: str = "evenflow.report") -> Markup:
    """A style sheet or script from a package's templates, as it stands in the page."""
    return Markup(files(package).joinpath("templates", name).read_text(encoding="utf-8"))


def script_sources(*scripts: str) -> str:
    """These inline scripts as the ``script-src`` of a content security policy."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
