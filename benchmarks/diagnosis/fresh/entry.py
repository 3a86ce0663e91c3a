"""An entry: one program as people write it, as it is and with its accepted fix.

A family's file registers its programs with :func:`faulty` and :func:`healthy`. What was
measured of them without evenflow is in ``facts.json``, which ``verify.py`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.diagnosis.subject import Subject

from evenflow import Program

FACTS = Path(__file__).parent / "facts.json"

Make = Callable[[bool], Program]
"""From whether the fix is in to the program."""


@dataclass(frozen=True)
class Entry:
    """A program and what is claimed of it.

    Attributes:
        name: Unique.
        kind: The architecture.
        make: The program, faulty or fixed.
        source: Where such a program was met: an address, or what it is modelled on.
        fix: The accepted fix, in words; empty if healthy.
        symptoms: What its source tells.
        causes: Any of these named first is right.
        places: Module paths of which one must be named for the place to be right.
        threshold: The metric that a healthy program must reach.
        seeds: With which it is run.
    """

    name: str
    kind: str
    make: Make
    source: str
    fix: str = ""
    symptoms: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    threshold: float | None = None
    seeds: tuple[int, ...] = (0,)

    def program(self, fixed: bool = False) -> Program:
        """The program, or its fixed twin."""
        return self.make(fixed)

    def subject(self) -> Subject:
        """The entry as the benchmark takes it.

        A symptom may rightly be reported if the source tells it or if it was measured
        bare; a tool must find those of which both is true. Where the fix was measured
        to help, a faulty program must stay below the middle between both metrics.
        """
        known = facts().get(self.name, {})
        measured = tuple(known.get("symptoms", ())) if self.fix else ()
        before, after = known.get("metric"), known.get("fixed_metric")
        ceiling = None
        if before is not None and after is not None and after > before:
            ceiling = (before + after) / 2
        return Subject(
            name=self.name,
            kind=self.kind,
            origin="fresh",
            split="open",
            program=partial(self.program, False),
            symptoms=tuple(dict.fromkeys((*self.symptoms, *measured))),
            confirmed=tuple(one for one in self.symptoms if one in measured),
            causes=self.causes,
            places=self.places,
            seeds=self.seeds,
            threshold=self.threshold,
            ceiling=ceiling,
        )


ENTRIES: dict[str, Entry] = {}


def faulty(
    kind: str,
    *,
    source: str,
    fix: str,
    symptoms: tuple[str, ...],
    causes: tuple[str, ...],
    places: tuple[str, ...] = (),
) -> Callable[[Make], Make]:
    """Register a faulty program; the function is called with whether its fix is in."""

    def register(make: Make) -> Make:
        return _register(make, kind, source=source, fix=fix, symptoms=symptoms, causes=causes, places=places)

    return register


def healthy(kind: str, threshold: float, *, source: str) -> Callable[[Callable[[], Program]], Make]:
    """Register a program that looks odd and learns all the same."""

    def register(make: Callable[[], Program]) -> Make:
        def plain(fixed: bool) -> Program:
            return make()

        plain.__name__ = make.__name__
        return _register(plain, kind, source=source, threshold=threshold, seeds=(0, 1))

    return register


def _register(make: Make, kind: str, **claims: Any) -> Make:
    name = "fresh-" + make.__name__.replace("_", "-")
    assert name not in ENTRIES, f"two programs are called {name}"
    ENTRIES[name] = Entry(name, kind, make, **claims)
    return make


@cache
def facts() -> dict[str, dict[str, Any]]:
    """What was measured of each entry, by name."""
    found: dict[str, dict[str, Any]] = json.loads(FACTS.read_text("utf-8")) if FACTS.exists() else {}
    return found
