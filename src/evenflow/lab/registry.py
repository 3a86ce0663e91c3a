"""All experiments there are, found by listing the folder ``experiments``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import TypeAlias

from evenflow.errors import EvenflowError
from evenflow.lab import experiments as package
from evenflow.lab.experiment import Experiment

Kind: TypeAlias = type[Experiment]


@cache
def experiments() -> tuple[Kind, ...]:
    """Every experiment, in the order of a textbook."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    return register(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Experiment) and value.__module__ == module.__name__
    )


def register(found: Iterable[Kind]) -> tuple[Kind, ...]:
    """The experiments in order, once they are known to be complete.

    Raises:
        TypeError: One lacks its words, or two share a name or a place.
    """
    taken: dict[str | int, Kind] = {}
    for kind in found:
        lacking = [word for word in ("place", "title", "question", "expectation") if not hasattr(kind, word)]
        if lacking or inspect.isabstract(kind):
            raise TypeError(f"{_where(kind)} is not complete: it has no {', '.join(lacking) or 'run'}.")
        for key in (kind.name(), kind.place):
            other = taken.setdefault(key, kind)
            if other is not kind:
                raise TypeError(f"{key!r} is taken twice: by {_where(other)} and by {_where(kind)}.")
    return tuple(sorted(set(taken.values()), key=lambda kind: kind.place))


def experiment(name: str) -> Kind:
    """The experiment of that name.

    Raises:
        EvenflowError: There is none.
    """
    known = {kind.name(): kind for kind in experiments()}
    wanted = name.strip().lower().replace("_", "-")
    if wanted not in known:
        close = difflib.get_close_matches(wanted, known, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."
        raise EvenflowError(f"The lab has no experiment {name!r}. {hint} All: evenflow lab list")
    return known[wanted]


def _where(kind: Kind) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
