"""Statements that can be run and can be printed.

What an edit does to a model is a list of statements such as

    Set(Ref("model", ("net", "1"), "model.net[1]"), Call(nn.ReLU))
    Call(nn.init.orthogonal_, (Ref("model", ("net", "0", "weight"), "model.net[0].weight"),))

:func:`run` carries them out, :func:`spelled` writes them as Python. There is one
description of a change and no second one that could differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import nn


@final
@dataclass(frozen=True, slots=True)
class Ref:
    """A place that can be read and set.

    Attributes:
        root: The variable: ``model``, ``optimizer``, ``loss`` or ``inputs``.
        path: Attribute names from there; the key, where what is reached is a mapping.
        text: The same as Python.
    """

    root: str
    path: tuple[str, ...] = ()
    text: str = ""


@final
@dataclass(frozen=True)
class Call:
    """A call of a function, class or method.

    Attributes:
        function: Something importable, or the :class:`Ref` of a method.
        args: Literals, and other values of this module.
        kwargs: Likewise.
        then: A method of the result to be called at once, with its keywords: ``nn.ReLU().to(...)``.
    """

    function: Callable[..., Any] | Ref
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    then: tuple[str, Mapping[str, Any]] | None = None


@final
@dataclass(frozen=True, slots=True)
class Set:
    """An assignment."""

    target: Ref
    value: Any


Statement: TypeAlias = Call | Set
Scope: TypeAlias = dict[str, Any]
"""The variables by name."""


@final
@dataclass(frozen=True, slots=True)
class Step:
    """What is done at one place.

    Attributes:
        statements: In order.
        source: The user's line that it is about, ``"net.py:12: self.act = nn.Tanh()"``; None if not known.
        note: What a reader of the code should know.
    """

    statements: tuple[Statement, ...]
    source: str | None = None
    note: str | None = None


def step(*statements: Statement, source: str | None = None, note: str | None = None) -> Step:
    """A :class:`Step` of these statements."""
    return Step(statements, source, note)


def call(function: Callable[..., Any] | Ref, *args: Any, **kwargs: Any) -> Call:
    """A :class:`Call` with these arguments."""
    return Call(function, args, kwargs)


# ---------------------------------------------------------------------------- running


def run(steps: list[Step], scope: Scope) -> None:
    """Carry the steps out; variables are read from ``scope`` and set there."""
    for one in steps:
        for statement in one.statements:
            if isinstance(statement, Set):
                _assign(statement.target, evaluate(statement.value, scope), scope)
            else:
                evaluate(statement, scope)


def evaluate(value: Any, scope: Scope) -> Any:
    """What a literal, a :class:`Ref` or a :class:`Call` stands for."""
    if isinstance(value, Ref):
        found = scope[value.root]
        for name in value.path:
            found = _inside(found, name)
        return found
    if isinstance(value, Call):
        function = evaluate(value.function, scope) if isinstance(value.function, Ref) else value.function
        args = [evaluate(one, scope) for one in value.args]
        kwargs = {name: evaluate(one, scope) for name, one in value.kwargs.items()}
        result = function(*args, **kwargs)
        return getattr(result, value.then[0])(**value.then[1]) if value.then else result
    if isinstance(value, (tuple, list)):
        return type(value)(evaluate(one, scope) for one in value)
    if isinstance(value, dict):
        return {name: evaluate(one, scope) for name, one in value.items()}
    return value


def _inside(thing: Any, name: str) -> Any:
    return thing[name] if isinstance(thing, Mapping) else getattr(thing, name)


def _assign(target: Ref, value: Any, scope: Scope) -> None:
    if not target.path:
        scope[target.root] = value
        return
    owner = evaluate(Ref(target.root, target.path[:-1]), scope)
    if isinstance(owner, dict):
        owner[target.path[-1]] = value
    else:
        setattr(owner, target.path[-1], value)


# --------------------------------------------------------------------------- spelling


@final
class Names:
    """Collects what the printed statements need: modules to import, pieces to define."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.pieces: list[Callable[..., Any]] = []

    def of(self, function: Callable[..., Any]) -> str:
        """The function's name as the printed code calls it."""
        module, name = function.__module__ or "torch", function.__qualname__
        if module.startswith("evenflow."):
            if function not in self.pieces:
                self.pieces.append(function)
            return name
        if module == "torch.nn.functional":
            self.imports.add("from torch.nn import functional as F")
            return f"F.{name}"
        if module.startswith("torch.nn.init"):
            return self._nn(f"nn.init.{name}")
        if module.startswith("torch.nn.utils"):
            short = getattr(nn.utils, name, None) is function
            return self._nn(f"nn.utils.{name}" if short else f"{module.removeprefix('torch.')}.{name}")
        if module.startswith("torch.nn"):
            return self._nn(f"nn.{name}")
        self.imports.add("import torch")
        return f"torch.optim.{name}" if module.startswith("torch.optim") else f"torch.{name}"

    def _nn(self, text: str) -> str:
        self.imports.add("from torch import nn")
        return text


def spelled(value: Any, names: Names) -> str:
    """A statement or a value as Python."""
    if isinstance(value, Set):
        return f"{spelled(value.target, names)} = {spelled(value.value, names)}"
    if isinstance(value, Ref):
        return value.text or value.root
    if isinstance(value, Call):
        function = value.function
        head = spelled(function, names) if isinstance(function, Ref) else names.of(function)
        text = f"{head}({_arguments(value.args, value.kwargs, names)})"
        return f"{text}.{value.then[0]}({_arguments((), value.then[1], names)})" if value.then else text
    if callable(value) and not isinstance(value, (torch.dtype, torch.device)):
        return names.of(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {spelled(one, names)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelled(one, names) for one in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(spelled(one, names) + ", " for one in value).rstrip(" ") + ")"
    if isinstance(value, (torch.dtype, torch.device)):
        names.imports.add("import torch")
        return repr(value) if isinstance(value, torch.dtype) else f"torch.{value!r}"
    assert value is None or isinstance(value, (bool, int, float, str)), f"no literal: {value!r}"
    return repr(value)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Names) -> str:
    named = (f"{key}={spelled(one, names)}" for key, one in kwargs.items())
    return ", ".join([*(spelled(one, names) for one in args), *named])
