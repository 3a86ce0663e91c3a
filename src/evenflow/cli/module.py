"""``file.py:name`` and ``package.module:name``: importing the user's code and finding the name in it.

The code runs as the user would run it: a file with its own folder first on the
path, a module with the current folder first. What goes wrong is told with the
user's own file and line.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from evenflow.cli.errors import nearest
from evenflow.errors import TargetError
from evenflow.trace.pairing import needed_arguments

_FORMS = "file.py:name, package.module:name, or a transformers config.json"
_FILE_MODULE = "__evenflow_target__"
"""Under this name a file is imported; it hides no module of the user's."""


@dataclass(frozen=True, slots=True)
class Place:
    """The two halves of ``home:name``; ``home`` is a file or a module."""

    home: str
    name: str

    def __str__(self) -> str:
        return f"{self.home}:{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether ``home`` is a file rather than a module."""
        return self.home.endswith(".py")


def find(text: str) -> tuple[Place, Any]:
    """Import the home of ``text`` and give what its name stands for.

    Raises:
        TargetError: There is no such file, module or name, or importing it failed.
    """
    home, _, name = text.rpartition(":")
    if not home:
        home, name = text, ""
    place = Place(home, name)
    if not place.is_file and not all(part.isidentifier() for part in home.split(".")):
        raise TargetError(f"'{text}' is no TARGET. Expected {_FORMS}.")
    module = _from_file(place) if place.is_file else _from_package(place)
    if not name:
        raise TargetError(f"{text}: say which name in it, as in {text}:NAME.{_then(_offers(module))}")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            hint = nearest(part, vars(found) if found is not module else _offered(module))
            raise TargetError(f"{home} has no '{part}'.{_then(hint)}{_then(_offers(module))}")
        found = getattr(found, part)
    return place, found


def called(place: Place, function: Callable[..., Any]) -> Any:
    """What the user's callable gives.

    Raises:
        TargetError: It needs arguments, or raised.
    """
    needed = needed_arguments(function)
    if needed:
        what = place.name.rpartition(".")[2]
        raise TargetError(
            f"{place} needs arguments ({', '.join(needed)}), and a TARGET is called without any.\n"
            f"Write a function that gives them, and name that one:\n"
            f"    def target():\n        return {what}({', '.join(f'{name}=...' for name in needed)})"
        )
    with _told(f"{place} raised", place):
        return function()


def _from_file(place: Place) -> ModuleType:
    path = Path(place.home)
    if not path.is_file():
        folder = path.parent
        hint = nearest(path.name, (file.name for file in folder.glob("*.py"))) if folder.is_dir() else None
        raise TargetError(f"There is no file {place.home}.{_then(hint)}")
    spec = importlib.util.spec_from_file_location(_FILE_MODULE, path.resolve())
    assert spec is not None, "a .py file has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[_FILE_MODULE] = module  # dataclasses and pickle look their module up there
    _first_on_path(path.resolve().parent)
    with _told(f"Importing {place.home} failed", place):
        spec.loader.exec_module(module)
    return module


def _from_package(place: Place) -> ModuleType:
    _first_on_path(Path.cwd())
    parts = place.home.split(".")
    try:
        known = importlib.util.find_spec(parts[0]) is not None
    except ValueError:  # a module without a spec, such as __main__
        known = False
    if not known:
        hint = nearest(parts[0], (module.name for module in pkgutil.iter_modules()))
        raise TargetError(f"There is no module {parts[0]}, neither here nor installed.{_then(hint)}")
    with _told(f"Importing {place.home} failed", place):
        return importlib.import_module(place.home)


def _first_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def _told(what: str, place: Place) -> Iterator[None]:
    """Turn an exception of the user's code into a TargetError that names its line."""
    argv, sys.argv = sys.argv, [place.home]
    try:
        yield
    except SystemExit as error:
        raise TargetError(
            f"{what}: it ended the program (SystemExit {error.code}){_line_of(error)}.\n"
            "Does it read the command line or train when imported? "
            "Move that under: if __name__ == '__main__':"
        ) from error
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        advice = "The whole traceback: --debug"
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").split(".")[0]
            advice = f"Run from the folder that holds it, or install it here: pip install {package}"
        raise TargetError(f"{what}{_line_of(error)}:\n    {text}\n{advice}") from error
    finally:
        sys.argv = argv


def _line_of(error: BaseException) -> str:
    """`` at file.py:12``, the innermost line outside installed packages; empty if there is none."""
    here = Path(__file__).parents[1]
    lines = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
    ]
    own = [
        (path, line)
        for path, line in lines
        if not path.is_relative_to(here)
        and not path.is_relative_to(sys.base_prefix)
        and "site-packages" not in path.parts
    ]
    if isinstance(error, SyntaxError) and error.filename:
        own = [(Path(error.filename), error.lineno)]
    if not own:
        return ""
    path, line = own[-1]
    return f" at {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def _offered(module: ModuleType) -> list[str]:
    """Names that could be a TARGET: the module's own functions, its models and model classes."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, nn.Module)
            or (
                getattr(value, "__module__", None) == module.__name__
                and (inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, nn.Module)))
            )
        )
    ]


def _offers(module: ModuleType) -> str:
    names = _offered(module)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"It offers: {shown}." if names else "It defines no function and no model."


def _then(sentence: str | None) -> str:
    """A further sentence of a message, if there is one."""
    return f" {sentence}" if sentence else ""
