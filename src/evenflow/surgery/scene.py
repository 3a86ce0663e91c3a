"""The model as edits see it: its modules by path, places to set, lines of the user's source.

A model is a module, or a mapping of modules by role; then each path begins with
the role. Places are chosen by glob over module paths, as ``fnmatch`` reads it:
``"*"`` is every module (dots are no boundary), ``"blocks.*.act"`` every ``act``
within ``blocks``, ``"head"`` one module, ``""`` the model itself.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import nn

from evenflow.surgery.errors import PatchError
from evenflow.surgery.script import Call, Ref, Set, Statement

Where: TypeAlias = str | tuple[str, ...]
"""A glob over module paths, or several."""


def at(where: Where, word: str = "at") -> str:
    """Where an edit is done, as the end of a text: `` at 'head'``; nothing if it is done everywhere.

    Of more than two globs the first is told, and how many there are besides.
    """
    if where == "*":
        return ""
    globs = (where,) if isinstance(where, str) else where
    told = " and ".join(map(repr, globs)) if len(globs) <= 2 else f"{globs[0]!r} and {len(globs) - 1} more"
    return f" {word} {told}"


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A module and its path."""

    path: str
    module: nn.Module

    @property
    def parent(self) -> str:
        """Path of the module around it."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{type(self.module).__name__} at {self.path or 'the root'!s}"


@final
class Scene:
    """A model under edit.

    Args:
        model: A module, or modules by role.
        inputs: What the model is called with, for edits that measure; None: nothing was given.
    """

    def __init__(self, model: nn.Module | Mapping[str, nn.Module], inputs: Any = None) -> None:
        self.model = model
        self.inputs = inputs
        self._places: list[Place] = []
        self._paths: dict[nn.Module, list[str]] = {}

    # ------------------------------------------------------------------- modules

    def places(self) -> list[Place]:
        """All modules in order of registration; a shared one once, by its first path."""
        if not self._places:
            roots = self.model.items() if isinstance(self.model, Mapping) else [("", self.model)]
            for role, root in roots:
                for name, module in root.named_modules(remove_duplicate=False):
                    path = ".".join(filter(None, (role, name)))
                    if module not in self._paths:
                        self._places.append(Place(path, module))
                    self._paths.setdefault(module, []).append(path)
        return self._places

    def at(self, path: str) -> nn.Module:
        """The module at a path."""
        thing: Any = self.model
        for name in filter(None, path.split(".")):
            thing = thing[name] if isinstance(thing, Mapping) else getattr(thing, name)
        found: nn.Module = thing
        return found

    def look_again(self, model: nn.Module | Mapping[str, nn.Module]) -> None:
        """Forget the modules: another edit begins."""
        self.model, self._places, self._paths = model, [], {}

    def select(self, where: Where, fits: Callable[[Place], bool], edit: str, wanted: str) -> list[Place]:
        """The places that a glob names and that an edit can use.

        Args:
            where: The glob, or several.
            fits: Whether the edit can do something at the place.
            edit: The edit's name, for the message.
            wanted: What it looks for, in words, for the message.

        Raises:
            PatchError: There is no such place.
        """
        able = [place for place in self.places() if fits(place)]
        found = [place for place in able if matches(where, place.path)]
        if found:
            return found
        named = [place for place in self.places() if matches(where, place.path)]
        if not named:
            near = ", ".join(repr(place.path) for place in self.places()[1:6]) or "only the root, ''"
            what = f"no module is at {where!r}; its paths are {near}" + (
                " …" if len(self.places()) > 6 else ""
            )
        else:
            what = f"at {where!r} there is {listing([str(place) for place in named], 3)}"
        raise PatchError(
            f"{edit} does not fit this model: {what}. Expected {wanted}. "
            + (
                f"The model has {listing([str(place) for place in able], 3)}; name one of these paths."
                if able
                else "The model has none; take another edit."
            )
        )

    # ----------------------------------------------------------------- statements

    def ref(self, path: str, *attributes: str) -> Ref:
        """The module at a path, or something inside it."""
        names = tuple(filter(None, path.split("."))) + attributes
        text, thing = "model", self.model
        for name in names:
            if isinstance(thing, (Mapping, nn.ModuleDict)):
                text, thing = f"{text}[{name!r}]", thing[name]
                continue
            if name.isdigit() and isinstance(thing, (nn.Sequential, nn.ModuleList)):
                text = f"{text}[{name}]"
            elif name.isidentifier():
                text = f"{text}.{name}"
            else:
                text = f"getattr({text}, {name!r})"
            thing = getattr(thing, name, None)  # type: ignore[assignment]
        return Ref("model", names, text)

    def put(self, place: Place, value: Call) -> tuple[Statement, ...]:
        """Statements that set a new module wherever the one at this place is used."""
        paths = self._paths[place.module]
        first = self.ref(paths[0])
        return (Set(first, value), *(Set(self.ref(path), first) for path in paths[1:]))

    def new(self, kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
        """A call that makes a module, on the model's device and in its floating type."""
        device, dtype = self.like
        moved: dict[str, Any] = {}
        if device.type != "cpu":
            moved["device"] = str(device)
        if dtype != torch.float32:
            moved["dtype"] = dtype
        return Call(kind, args, kwargs, ("to", moved) if moved else None)

    @property
    def like(self) -> tuple[torch.device, torch.dtype]:
        """Device and type of the model's first floating parameter."""
        for place in self.places():
            for parameter in place.module._parameters.values():
                if parameter is not None and parameter.is_floating_point():
                    return parameter.device, parameter.dtype
        return torch.device("cpu"), torch.float32

    # --------------------------------------------------------------------- source

    def line(self, path: str) -> str | None:
        """The user's line that makes the module at a path, ``"net.py:12: self.act = nn.Tanh()"``."""
        parent, _, name = path.rpartition(".")
        while name.isdigit() and parent:
            parent, _, name = parent.rpartition(".")
        if not name or (isinstance(self.model, Mapping) and not parent):
            return None
        kind: Any = type(self.at(parent))
        return _assignment(kind, name)


def matches(where: Where, path: str) -> bool:
    """Whether a glob, or one of several, names a path."""
    return any(fnmatchcase(path, one) for one in ((where,) if isinstance(where, str) else where))


def is_exact(where: Where) -> bool:
    """Whether places are named one by one, without a wildcard."""
    return not any(mark in one for one in ((where,) if isinstance(where, str) else where) for mark in "*?[")


def outermost(places: list[Place]) -> list[Place]:
    """The places that are not inside another of them."""

    def within(one: Place, other: Place) -> bool:
        return one is not other and one.path.startswith(f"{other.path}." if other.path else "")

    return [one for one in places if not any(within(one, other) for other in places)]


def listing(items: list[str], most: int) -> str:
    """``a, b, c and 4 more``."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


@cache
def source_of(kind: Any) -> tuple[str, int, ast.ClassDef] | None:
    """(file, first line, syntax tree) of a user's class; None for PyTorch's, or if there is no source."""
    if kind.__module__.split(".")[0] == "torch":
        return None
    try:
        text, first = inspect.getsourcelines(kind)
        file = inspect.getsourcefile(kind) or "?"
        tree = ast.parse(textwrap.dedent("".join(text)))
    except (OSError, TypeError, SyntaxError):
        return None
    node = tree.body[0]
    return (Path(file).name, first, node) if isinstance(node, ast.ClassDef) else None


def source_line(kind: type, node: ast.stmt | ast.expr) -> str:
    """``"net.py:12: text of the line"`` of a node in a class's tree."""
    found = source_of(kind)
    assert found is not None
    file, first, _ = found
    text = inspect.getsourcelines(kind)[0][node.lineno - 1].strip()
    return f"{file}:{first + node.lineno - 1}: {text}"


@cache
def _assignment(kind: Any, name: str) -> str | None:
    for base in kind.__mro__:
        found = source_of(base)
        if found is None:
            continue
        for node in ast.walk(found[2]):
            targets = node.targets if isinstance(node, ast.Assign) else []
            flat = [part for one in targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])]
            if any(isinstance(one, ast.Attribute) and one.attr == name for one in flat):
                assert isinstance(node, ast.Assign)
                return source_line(base, node)
    return None
