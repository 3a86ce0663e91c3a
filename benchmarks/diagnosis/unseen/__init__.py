"""Unseen programs: a second set that was written blind, of other kinds and with milder faults than ``fresh``.

They were run once before anybody who writes rules or remedies had read them; since then they are
open, and later figures on them are not blind. ``fresh/verify.py`` measures them bare, and asks more
of them than of the first set: the fix must help *and* a symptom must be seen, with a margin.

    python benchmarks/diagnose.py --origin unseen
    python benchmarks/fix.py --origin unseen --json FILE
    python -m benchmarks.diagnosis.fresh.verify --origin unseen     are the facts still so?
"""

from __future__ import annotations

from benchmarks.diagnosis.unseen.collection import UNSEEN

__all__ = ["UNSEEN"]
