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

from benchmarks.diagnosis.fresh.entry import FRESH

__all__ = ["FRESH"]
