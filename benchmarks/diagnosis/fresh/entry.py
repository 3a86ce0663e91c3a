"""An entry: one program as people write it, as it is and with its accepted fix.

A family's file registers its programs with the :meth:`Collection.faulty` and :meth:`Collection.healthy`
of its collection. What was measured of them without evenflow is in ``facts.json`` of the
collection's folder, which ``verify.py`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from benchmarks.diagnosis.subject import Origin, Split, Subject

from evenflow import Program

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

    def subject(self, origin: Origin, split: Split, known: dict[str, Any]) -> Subject:
        """The entry as the benchmark takes it, with what is known of it from being measured.

        A symptom may rightly be reported if the source tells it or if it was measured
        bare; a tool must find those of which both is true. Where the fix was measured
        to help, a faulty program must stay below the middle between both metrics.
        """
        measured = tuple(known.get("symptoms", ())) if self.fix else ()
        before, after = known.get("metric"), known.get("fixed_metric")
        ceiling = None
        if before is not None and after is not None and after > before:
            ceiling = (before + after) / 2
        return Subject(
            name=self.name,
            kind=self.kind,
            origin=origin,
            split=split,
            program=partial(self.program, False),
            symptoms=tuple(dict.fromkeys((*self.symptoms, *measured))),
            confirmed=tuple(one for one in self.symptoms if one in measured),
            causes=self.causes,
            places=self.places,
            seeds=self.seeds,
            threshold=self.threshold,
            ceiling=ceiling,
        )


@dataclass(frozen=True)
class Collection:
    """Programs that were written together, in the modules of one package.

    Attributes:
        origin: What its subjects are called by; also the start of each name.
        split: Whether rule authors may look at it.
        package: Where its modules are.
        margin: By which factor a measure must pass its limit for a symptom to be seen; see ``verify.py``.
        strict: Whether a faulty program must both be made better by its fix and show a symptom
            that its source tells; otherwise one of them is enough.
    """

    origin: Origin
    split: Split
    package: str
    margin: float = 1.0
    strict: bool = False
    registered: dict[str, Entry] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Where the package lies."""
        return Path(__file__).parents[3].joinpath(*self.package.split("."))

    @property
    def file(self) -> Path:
        """Where the facts are."""
        return self.folder / "facts.json"

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All programs by name."""
        for module in iter_modules([str(self.folder)]):
            if module.name != "verify":
                import_module(f"{self.package}.{module.name}")
        return self.registered

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What was measured of each entry, by name."""
        return self.read()

    def read(self) -> dict[str, dict[str, Any]]:
        """What the file of facts says now."""
        found: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            found = json.loads(self.file.read_text("utf-8"))
        return found

    def subjects(self) -> list[Subject]:
        """All programs, as the benchmark takes them."""
        return [
            one.subject(self.origin, self.split, self.facts.get(name, {}))
            for name, one in self.entries.items()
        ]

    def repaired(self, name: str) -> Program | None:
        """The program with its accepted fix; None if there is no such faulty one."""
        one = self.entries.get(name)
        return one.program(fixed=True) if one is not None and one.fix else None

    def faulty(
        self,
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
            return self._register(
                make, kind, source=source, fix=fix, symptoms=symptoms, causes=causes, places=places
            )

        return register

    def healthy(self, kind: str, threshold: float, *, source: str) -> Callable[[Callable[[], Program]], Make]:
        """Register a program that looks odd and learns all the same."""

        def register(make: Callable[[], Program]) -> Make:
            def plain(fixed: bool) -> Program:
                return make()

            plain.__name__ = make.__name__
            return self._register(plain, kind, source=source, threshold=threshold, seeds=(0, 1))

        return register

    def _register(self, make: Make, kind: str, **claims: Any) -> Make:
        name = f"{self.origin}-" + make.__name__.replace("_", "-")
        assert name not in self.registered, f"two programs are called {name}"
        self.registered[name] = Entry(name, kind, make, **claims)
        return make


FRESH = Collection("fresh", "open", "benchmarks.diagnosis.fresh")
faulty, healthy = FRESH.faulty, FRESH.healthy
