"""Verdicts on paired trials."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from evenflow.fix import Tried
from evenflow.fix.outcome import Proof, Verdict, proved, ranked
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
        ((0.003, 0.003, 0.003), Verdict.CONFIRMED),  # .6 % of .5
        ((0.002, 0.002, 0.002), Verdict.INCONCLUSIVE),  # .4 %: for certain, and nothing worth having
    ],
)
def test_the_whole_interval_decides(differences: tuple[float, ...], verdict: Verdict) -> None:
    assert _tried(*differences).verdict is verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((1.0, 0.8, 7.0, 0.9, 0.7, 78.6), Verdict.CONFIRMED),  # t: −19 … 49
        ((1.0, 0.8, 7.0, 0.9, 78.6), Verdict.INCONCLUSIVE),  # of five seeds by chance in one case of 16
        ((1.0, 0.8, 7.0, 0.9, -0.1, 78.6), Verdict.INCONCLUSIVE),
        ((-1.0, -0.8, -7.0, -0.9, -0.7, -78.6), Verdict.REFUTED),
    ],
)
def test_six_seeds_of_one_mind_leave_no_doubt_however_far_one_is_off(
    differences: tuple[float, ...], verdict: Verdict
) -> None:
    assert _tried(*differences).verdict is verdict


def test_a_baseline_that_broke_is_worse_than_any_patched_score() -> None:
    trial = Tried(Patch([ClipGradient()]), "clip", "", 20, (-math.inf,) * 3, (0.2, 0.3, 0.25), 1.0)
    assert min(trial.differences) > 0
    assert trial.verdict is Verdict.CONFIRMED


def test_a_baseline_that_diverges_to_other_powers_of_ten_hides_no_gain() -> None:
    """Scores of gh-facial-keypoints-adam01: R² at far too high a rate, and with norms."""
    wild, tame = (-615119.0, -1002758.7, -3912112.7), (-0.25, -0.18, -0.17)
    trial = Tried(Patch([ClipGradient()]), "clip", "", 62, wild, tame, 1.0)
    assert trial.verdict is Verdict.CONFIRMED
    centre, reach = -0.2 + 0.25 + 10 * (0.25 + 1), 4.3027 * math.sqrt(0.0019 / 3)  # Student's t of 2
    assert trial.interval == pytest.approx((centre - reach, centre + reach), rel=1e-4)
    assert trial.effect > 1e6, "patches are compared by the whole gain"
    assert trial.diverged
    assert not replace(trial, baseline=(-0.5, -0.4, -0.6)).diverged
    assert replace(trial, baseline=tame, patched=wild).verdict is not Verdict.CONFIRMED
    once = replace(trial, baseline=(-3912112.7, 0.1, 0.1), patched=(0.1, 0.1, 0.1))
    assert once.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("end", "verdict"), [(0.9, Verdict.CONFIRMED), (0.5, Verdict.REFUTED)])
def test_a_gain_in_short_trials_counts_only_if_it_lasts_to_the_end(end: float, verdict: Verdict) -> None:
    assert replace(_tried(0.3, 0.3), proof=Proof(200, 0.5, end)).verdict is verdict


@pytest.mark.parametrize(
    ("before", "after", "better"),
    [
        (0.314, 0.311, False),
        (0.996, 1.0, False),
        (0.98, 1.0, True),
        (-6.855, -6.850, False),
        (-math.inf, -9.0, True),
        (-math.inf, -math.inf, False),
        (0.2, -math.inf, False),
    ],
)
def test_a_whole_training_is_better_by_a_gain_worth_having(before: float, after: float, better: bool) -> None:
    assert Proof(200, before, after).better is better


def test_whole_trainings_decide_over_short_trials_unless_they_end_alike() -> None:
    fast, slow, other = _tried(0.40, 0.41, 0.40), _tried(0.30, 0.31, 0.30, size=2), _tried(0.1, 0.11, 0.1)
    fast, late = replace(fast, proof=Proof(200, 0.5, 0.6)), replace(slow, proof=Proof(200, 0.5, 0.9))
    assert proved([fast, late, other]) == [late, fast, other]
    alike = replace(slow, proof=Proof(200, 0.5, 0.601))
    assert proved([fast, alike, other]) == [fast, alike, other]
    assert proved([alike, fast, other]) == [fast, alike, other]  # the smaller one


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
