"""The user's line that is running: the innermost frame outside PyTorch and evenflow.

Whoever called ``measure`` ran no op, so its frame and those around it do not count:
an op of a plain ``nn.Sequential`` has no line.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import FrameType

import torch

_HERE = Path(__file__).parent
_PASSED_OVER = (str(Path(torch.__file__).parent), str(_HERE))
_RUN_THE_USERS_CODE = tuple(str(_HERE.with_name(name)) for name in ("measure", "predict", "watch"))


def line_of(frame: FrameType | None) -> str | None:
    """Place of the innermost user frame from ``frame`` outwards, as ``"path/file.py:12"``; None if none."""
    while frame is not None:
        place = _user_file(frame.f_code.co_filename)
        if place is not None:
            return f"{place}:{frame.f_lineno}" if place else None
        frame = frame.f_back
    return None


@cache
def _user_file(filename: str) -> str | None:
    """A short name of the file; None for files that are passed over or no files, "" where to stop."""
    if filename.startswith(_RUN_THE_USERS_CODE):
        return ""
    if filename.startswith(_PASSED_OVER) or (filename[:1] == "<" and filename[:8] != "<ipython"):
        return None
    path = Path(filename)
    roots = [
        root for root in (Path.cwd(), *map(Path, sys.path)) if root != Path() and path.is_relative_to(root)
    ]
    return str(path.relative_to(max(roots, key=lambda root: len(root.parts)))) if roots else filename
