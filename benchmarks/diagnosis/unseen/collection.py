"""The collection, to which each family's file adds its programs."""

from __future__ import annotations

from benchmarks.diagnosis.fresh.entry import Collection

UNSEEN = Collection("unseen", "open", "benchmarks.diagnosis.unseen", margin=1.25, strict=True)
faulty, healthy = UNSEEN.faulty, UNSEEN.healthy
