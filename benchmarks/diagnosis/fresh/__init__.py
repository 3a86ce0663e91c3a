"""Fresh programs, written by someone who never saw evenflow's rules nor ran evenflow on them.

One file a family. Every program is a function of whether its accepted fix is in; its
docstring says what it is and what is wrong. ``verify.py`` trains each of them bare and
freezes what it measured in ``facts.json``.

They were examined first on 21 November 2026, once, by rules that nobody had fitted to them: of 60
faulty ones a symptom was found in 53 and a true cause was named first in 52; of 56 trainings of
the healthy ones none was alarmed about. Since then they are open: rule authors read them, and
today's figures on them prove less.

    python benchmarks/diagnose.py --origin fresh
    python benchmarks/fix.py --origin fresh --json FILE
    python -m benchmarks.diagnosis.fresh.verify          are the facts still so?
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from benchmarks.diagnosis.fresh.entry import ENTRIES, Entry
from benchmarks.diagnosis.subject import Subject

from evenflow import Program


def entries() -> dict[str, Entry]:
    """All programs by name."""
    for module in iter_modules(__path__):
        if module.name != "verify":
            import_module(f"{__name__}.{module.name}")
    return ENTRIES


def fresh() -> list[Subject]:
    """All programs, as the benchmark takes them."""
    return [one.subject() for one in entries().values()]


def repaired(name: str) -> Program | None:
    """The program with its accepted fix; None if there is no such faulty one."""
    one = entries().get(name)
    return one.program(fixed=True) if one is not None and one.fix else None
