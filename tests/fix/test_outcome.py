"""Verdicts on paired trials."""

from __future__ import annotations

import math

import pytest

from evenflow.fix import Tried
from evenflow.fix.outcome import Verdict, ranked
from evenflow.surgery import ClipGradient, Patch, SetLearningRate


def _tried(*differences: float, size: int = 1, baseline: float = 0.5) -> Tried:
    edits = [ClipGradient(), *(SetLearningRate(factor=0.1) for _ in range(size - 1))]
    before = (baseline,) * len(differences)
    return Tried(
        Patch(edits), "clip", "why", 20, before, tuple(baseline + one for one in differences), seconds=1.0
    )


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.30, 0.31, 0.29), Verdict.CONFIRMED),
        ((0.1, 0.1), Verdict.CONFIRMED),  # the same twice: an interval of width 0
        ((0.30, -0.01, 0.1), Verdict.INCONCLUSIVE),
        ((-0.30, -0.31, -0.29), Verdict.REFUTED),
        ((0.0, 0.0, 0.0), Verdict.REFUTED),
        ((0.3,), Verdict.INCONCLUSIVE),  # one seed has no interval
    ],
)
def test_the_whole_interval_decides(differences: tuple[float, ...], verdict: Verdict) -> None:
    assert _tried(*differences).verdict is verdict


def test_a_baseline_that_broke_is_worse_than_any_patched_score() -> None:
    trial = Tried(Patch([ClipGradient()]), "clip", "", 20, (-math.inf,) * 3, (0.2, 0.3, 0.25), 1.0)
    assert min(trial.differences) > 0
    assert trial.verdict is Verdict.CONFIRMED


def test_the_smallest_comes_first_among_those_as_good() -> None:
    large, small = _tried(0.40, 0.50, 0.45, size=3), _tried(0.38, 0.51, 0.44, size=1)
    weak = _tried(0.05, 0.06, 0.05, size=1)
    assert ranked([weak, large, small]) == [small, large, weak]


def test_a_larger_patch_comes_first_where_it_is_better_from_every_seed() -> None:
    large, small = _tried(0.80, 0.90, 0.85, size=3), _tried(0.38, 0.51, 0.44, size=1)
    assert ranked([small, large]) == [large, small]


def test_over_a_baseline_that_broke_patches_are_ranked_by_what_they_reach() -> None:
    """A gain is then counted from below the patch's own worst, so a bad patch gains more than a good one."""
    broken = (-math.inf,) * 3
    bad, good = (
        Tried(Patch([ClipGradient()]), "clip", "", 20, broken, scores, 1.0)
        for scores in ((-1.2, -1.3, -1.2), (0.7, 0.7, 0.75))
    )
    assert bad.effect > good.effect
    assert ranked([bad, good]) == [good, bad]
