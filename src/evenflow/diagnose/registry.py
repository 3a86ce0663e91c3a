"""All rules there are, found by listing the folder ``rules``."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from functools import cache

from evenflow.diagnose import rules as package
from evenflow.diagnose.rule import Rule
from evenflow.errors import EvenflowError

_CODE = re.compile(r"EF\d{3}")


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, by code."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    return register(
        value()
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__
    )


def register(found: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules sorted by code, once their codes and names are known to be sound.

    Raises:
        TypeError: A code is malformed, or two rules share a code or a name.
    """
    by_code: dict[str, Rule] = {}
    by_name: dict[str, Rule] = {}
    for rule in found:
        if not _CODE.fullmatch(rule.code):
            raise TypeError(f"{_where(rule)} has the code {rule.code!r}; expected EF and three digits.")
        for key, taken in ((rule.code, by_code), (rule.name, by_name)):
            if key in taken:
                raise TypeError(f"{key} is taken twice: by {_where(taken[key])} and by {_where(rule)}.")
            taken[key] = rule
    return tuple(by_code[code] for code in sorted(by_code))


def select_rules(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[Rule, ...]:
    """The rules that were asked for.

    Args:
        select: Codes (``EF101``), beginnings of codes (``EF1``) or names, or one of
            these as it is; all rules if empty.
        ignore: Rules to leave out, likewise; wins over ``select``.

    Raises:
        EvenflowError: A word fits no rule.
    """
    select, ignore = ([words] if isinstance(words, str) else words for words in (select, ignore))
    wanted = [rule for word in select for rule in _matching(word, "select")] or list(rules())
    unwanted = {rule.code for word in ignore for rule in _matching(word, "ignore")}
    codes = {rule.code for rule in wanted} - unwanted
    return tuple(rule for rule in rules() if rule.code in codes)


def _matching(word: str, argument: str) -> list[Rule]:
    wanted = word.strip()
    found = [
        rule
        for rule in rules()
        if rule.name == wanted.lower() or (wanted and rule.code.startswith(wanted.upper()))
    ]
    if not found:
        known = ", ".join(f"{rule.code} ({rule.name})" for rule in rules())
        raise EvenflowError(
            f"{argument}: no rule is called {word!r}. "
            f"Give a code, the beginning of one (EF1) or a name. Rules: {known}."
        )
    return found


def _where(rule: Rule) -> str:
    return f"{type(rule).__module__}.{type(rule).__qualname__}"
