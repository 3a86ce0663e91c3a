"""Unseen programs: a second set that was written blind, of other kinds and with milder faults than ``fresh``.

Held out: whoever writes rules or remedies reads neither these files nor what evenflow says of
one of them; only the figures over all of them count. ``fresh/verify.py`` measures them bare, and
asks more of them than of the first set: the fix must help *and* a symptom must be seen, with a margin.

    python benchmarks/diagnose.py --origin unseen
    python benchmarks/fix.py --origin unseen --json FILE
    python -m benchmarks.diagnosis.fresh.verify --origin unseen     are the facts still so?
"""

from __future__ import annotations

from benchmarks.diagnosis.unseen.collection import UNSEEN

__all__ = ["UNSEEN"]
