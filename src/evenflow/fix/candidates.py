"""What remedies make of a case, before anything is tried."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from evenflow.errors import EvenflowError
from evenflow.fix.remedy import Case, remedies
from evenflow.surgery import Edit, Patch, SetLearningRate, SetOptimizer

CANDIDATES = 24
"""Patches that race, the most promising ones."""
RATES = (10.0, 3.0, 0.3, 0.1)
"""Times the learning rate of a patch that works, in halves of a decade as in the remedies."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A patch to try, where it comes from, how promising it is, whether it goes first or last."""

    patch: Patch
    remedy: str
    reason: str
    promise: float
    first: bool = False
    last: bool = False


def proposed(case: Case, ignore: Collection[str] = ()) -> tuple[list[Candidate], list[str]]:
    """(what remedies but the ignored make of a case, most promising first; what only a person can do)."""
    found: dict[str, Candidate] = {}
    advice: list[str] = []
    for remedy in remedies():
        promise = 0.0 if remedy.name in ignore else remedy.promise(case)
        if promise <= 0:
            continue
        ahead = remedy.first(case)
        for rank, patch in enumerate(remedy.patches(case)):
            if not patch.touches:
                advice.append(patch.describe())
                continue
            weight, ahead_of_all = promise * 0.9**rank, rank < ahead
            one = Candidate(patch, remedy.name, remedy.reason(case), weight, ahead_of_all, remedy.last)
            known = found.setdefault(patch.to_json(), one)
            if (known.first, not known.last, known.promise) < (one.first, not one.last, one.promise):
                found[patch.to_json()] = one
    best = sorted(found.values(), key=lambda one: (not one.first, -one.promise, one.patch.size))
    last = [one for one in best if one.last]
    return [one for one in best if not one.last][:CANDIDATES] + last, advice


def at_other_rates(patch: Patch) -> list[Patch]:
    """The patch with other learning rates, if it sets one: what fits another init or norm is another rate."""
    found = []
    for times in RATES:
        edits = tuple(_faster(edit, times) for edit in patch.edits)
        if edits != patch.edits:
            found.append(Patch(edits, patch.seed))
    return found


def _faster(edit: Edit, times: float) -> Edit:
    if isinstance(edit, SetOptimizer) or (isinstance(edit, SetLearningRate) and edit.lr is not None):
        assert edit.lr is not None
        return replace(edit, lr=float(f"{times * edit.lr:.3g}"))
    if isinstance(edit, SetLearningRate) and edit.factor is not None:
        return replace(edit, factor=float(f"{times * edit.factor:.3g}"))
    return edit


def left_out(names: Iterable[str]) -> frozenset[str]:
    """Names of remedies, looked up.

    Raises:
        EvenflowError: There is no such remedy.
    """
    names, known = frozenset(names), [remedy.name for remedy in remedies()]
    if unknown := names.difference(known):
        raise EvenflowError(
            f"There is no remedy {', '.join(sorted(unknown))}. There are: {', '.join(known)}."
        )
    return names
