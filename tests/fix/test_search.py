"""What goes on from a race, and what is tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import evenflow as ef
from evenflow.check import LEAST_WATCHING
from evenflow.errors import EvenflowError
from evenflow.fix import Outcome, search
from evenflow.fix.candidates import Candidate
from evenflow.fix.course import Course
from evenflow.fix.outcome import Verdict
from evenflow.fix.search import searched
from evenflow.parallel import Workers
from evenflow.surgery import Patch, SetLearningRate

LEVELS = {None: 1.0, 2.0: 0.9, 3.0: 0.8, 4.0: 0.7, 5.0: 0.6, 6.0: 0.5, 7.0: 0.4, 8.0: 2.0}
"""Factor of the learning rate → loss at which a training ends."""


def _factor(patch: Patch) -> float | None:
    edit = patch.edits[0]
    assert isinstance(edit, SetLearningRate)
    return edit.factor


class _Levels:
    """A subject whose trainings end at a known loss, shaken by the seed."""

    report = None
    noise = 0.0

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        patches = {factor: Patch([SetLearningRate(factor=factor)]) for factor in LEVELS if factor}
        return [Candidate(patch, f"by {factor}", "", 1.0 / factor) for factor, patch in patches.items()], []

    def screen(self, patch: Patch) -> None:
        return None

    def course(self) -> object:
        return self._course

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        level = LEVELS.get(None if patch is None else _factor(patch), 3.0)
        shaken = level + self.noise * (1 if seed % 3 == 0 else -0.4) * (patch is None)
        return Course((shaken,) * steps, None, 0.0)

    def flow(self, patch: Patch) -> None:
        return None


def _run(noise: float = 0.0) -> Outcome:
    subject = _Levels()
    subject.noise = noise
    return searched(subject, (0, 1, 2), 40, Workers())  # type: ignore[arg-type]


def test_most_promising_patches_reach_the_trials_though_they_lose_the_race() -> None:
    tried = [trial.remedy for trial in _run(noise=0.001).trials]
    assert tried == ["by 2.0", "by 3.0", "by 7.0", "by 6.0"]


def test_doubtful_gains_are_tried_from_as_many_seeds_again() -> None:
    counts = {trial.remedy: len(trial.differences) for trial in _run(noise=0.35).trials}
    assert counts == {"by 2.0": 1, "by 3.0": 1, "by 7.0": 6, "by 6.0": 3}


def test_the_best_from_one_seed_are_tried_from_more_and_clear_gains_from_no_others() -> None:
    counts = {trial.remedy: len(trial.differences) for trial in _run(noise=0.001).trials}
    assert counts == {"by 2.0": 1, "by 3.0": 1, "by 7.0": 3, "by 6.0": 3}


class _Alike(_Levels):
    """The best two of the first eight are of one remedy."""

    noise = 0.001

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        plain, advice = super().candidates()
        alike = {6.0: "rate", 7.0: "rate"}
        return [
            replace(one, remedy=alike.get(_factor(one.patch) or 0.0, one.remedy)) for one in plain
        ], advice


def test_not_both_that_are_tried_from_more_seeds_are_of_one_remedy() -> None:
    outcome = searched(_Alike(), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    counts = {_factor(trial.patch): len(trial.differences) for trial in outcome.trials}
    assert counts == {2.0: 1, 3.0: 3, 6.0: 1, 7.0: 3}


class _Useless(_Levels):
    """No patch is better."""

    noise = 0.001

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        self.seeds += [seed] if patch is not None else []
        return Course((1.0 + 0.001 * seed + (patch is not None) * 0.1,) * steps, None, 0.0)


def test_what_loses_from_one_seed_is_tried_from_no_other() -> None:
    subject = _Useless()
    outcome = searched(subject, (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert set(subject.seeds) == {0}
    assert {one.verdict for one in outcome.trials} == {Verdict.INCONCLUSIVE}


@pytest.mark.parametrize(("whole", "grows"), [(40, False), (4000, True), (0, True)])
def test_a_search_that_took_long_is_content_with_what_was_confirmed(whole: int, grows: bool) -> None:
    """Two waves of 8 candidates and their duels take more than ten trainings, if a trial is a training."""
    subject = _Levels()
    subject.noise = 0.001
    outcome = searched(subject, (0, 1, 2), 40, Workers(), longest=whole)  # type: ignore[arg-type]
    tried = [one.remedy for one in outcome.trials] + [one.remedy for one in outcome.refuted]
    assert any(" and " in remedy for remedy in tried) is grows
    assert outcome.patches


class _Recipes(_Levels):
    """As :class:`_Levels`, with recipes made for just this case; what was screened is kept."""

    def __init__(self, *recipes: float) -> None:
        self.recipes, self.screened, self.noise = recipes, list[float | None](), 0.001

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        plain, advice = super().candidates()
        return [replace(one, first=_factor(one.patch) in self.recipes) for one in plain], advice

    def screen(self, patch: Patch) -> None:
        self.screened.append(_factor(patch))


def test_a_recipe_that_works_ends_the_search_before_others_are_measured() -> None:
    subject = _Recipes(5.0, 6.0)
    outcome = searched(subject, (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert subject.screened == [5.0, 6.0]
    assert [found.remedy for found in outcome.patches] == ["by 6.0", "by 5.0"]


def test_a_recipe_in_doubt_is_tried_from_more_seeds_before_others_are_measured() -> None:
    subject = _Recipes(6.0)
    subject.noise = 0.35
    outcome = searched(subject, (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert subject.screened == [6.0]
    assert [len(trial.differences) for trial in outcome.trials] == [6]


def test_where_no_recipe_works_the_others_are_tried() -> None:
    subject = _Recipes(8.0)
    outcome = searched(subject, (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert subject.screened[:2] == [8.0, 2.0]
    assert outcome.trials[0].remedy == "by 8.0"
    assert outcome.patches
    assert "by 8.0" not in {found.remedy for found in outcome.patches}


def _program() -> ef.Program:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    return ef.Program(
        build=lambda seed: nn.Linear(4, 1),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        batches=lambda seed: [torch.ones(8, 4)],
        loss=loss,
        steps=5,
    )


def test_unknown_remedy_to_ignore_is_told() -> None:
    with pytest.raises(EvenflowError, match="no remedy nonsense"):
        ef.fix(_program(), ignore=("nonsense",))


class _Healthy:
    healthy = True


def test_the_check_before_a_search_is_short_and_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []

    def check(program: ef.Program, *, confirm: bool, seconds: float) -> _Healthy:
        spent.append(seconds)
        return _Healthy()

    monkeypatch.setattr(search, "check", check)
    ef.fix(_program())
    ef.fix(_program(), report=_Healthy())  # type: ignore[arg-type]
    assert spent == [LEAST_WATCHING]


class _TwoFaults(_Levels):
    """Two faults, of which the second hides behind the first: alone, its cure changes nothing."""

    OPEN, HIDDEN = SetLearningRate(factor=2.0), SetLearningRate(factor=3.0)

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        return [
            Candidate(Patch([self.HIDDEN]), "hidden", "", 1.0),
            Candidate(Patch([self.OPEN]), "open", "", 0.9),
        ], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        edits = () if patch is None else patch.edits
        level = 1.0 - 0.3 * (self.OPEN in edits) * (1 + (self.HIDDEN in edits)) + 0.001 * seed
        return Course((level,) * steps, None, 0.0)


def test_a_patch_grows_by_what_alone_did_nothing() -> None:
    outcome = searched(_TwoFaults(), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert any(one.remedy == "hidden" and "changes nothing" in one.why for one in outcome.refuted)
    assert [found.remedy for found in outcome.patches] == ["open and hidden", "open"]
    assert outcome.patches[0].patch.edits == (_TwoFaults.OPEN, _TwoFaults.HIDDEN)


class _Overlapping(_Levels):
    """Nothing helps; of three recipes one holds all of another's edits, and one a part of them."""

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        recipes = {"all": (2.0, 3.0, 4.0), "part": (2.0, 3.0), "mixed": (2.0, 5.0)}
        patches = {name: Patch([SetLearningRate(factor=f) for f in two]) for name, two in recipes.items()}
        return [Candidate(patch, name, "", 1.0) for name, patch in patches.items()], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        level = 1.0 + 0.001 * seed + (0 if patch is None else 0.001 * patch.size)
        return Course((level - (0.1 if steps < 40 and patch is not None else 0),) * steps, None, 0.0)


def test_what_two_patches_have_in_common_is_made_once_where_they_are_joined() -> None:
    outcome = searched(_Overlapping(), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    joined = [one.patch for one in outcome.trials if " and " in one.remedy]
    factors = [[edit.factor for edit in patch.edits if isinstance(edit, SetLearningRate)] for patch in joined]
    assert [2.0, 3.0, 5.0] in factors
    assert all(len(set(two)) == len(two) for two in factors)
    assert not any(patch == _Overlapping().candidates()[0][0].patch for patch in joined)


class _Late(_Levels):
    """What cures it shows after 100 steps only."""

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        return [Candidate(Patch([SetLearningRate(factor=2.0)]), "late", "", 1.0)], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        level = 0.5 if patch is not None and steps > 100 else 1.0 + (patch is not None) * 1e-6
        return Course((level + 0.001 * seed,) * steps, None, 0.0)


@pytest.mark.parametrize(("longest", "found"), [(4000, [400]), (300, [300]), (80, []), (0, [])])
def test_where_nothing_is_confirmed_trials_are_longer_but_never_than_the_training(
    longest: int, found: list[int]
) -> None:
    outcome = searched(_Late(), (0, 1, 2), 40, Workers(), longest=longest)  # type: ignore[arg-type]
    assert [trial.steps for trial in outcome.patches] == found
    assert max(trial.steps for trial in outcome.trials) == max(40, min(longest, 400))


class _LosesFirst(_Levels):
    """All gain in races and not after 40 steps; the most promising is the worst there, and the cure later."""

    def __init__(self) -> None:
        self.jobs: list[tuple[float | None, int, int]] = []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        factor = None if patch is None else _factor(patch)
        self.jobs.append((factor, seed, steps))
        level = 1.0
        if factor is not None:
            level = 0.9 if steps < 40 else 1.1 + (factor == 2.0) * (1.0 if steps == 40 else -0.6)
        return Course((level + 0.001 * seed,) * steps, None, 0.0)


def test_longer_trials_are_of_the_most_promising_and_end_with_the_first_that_is_confirmed() -> None:
    subject = _LosesFirst()
    outcome = searched(subject, (0, 1, 2), 40, Workers(), longest=400)  # type: ignore[arg-type]
    assert [(_factor(one.patch), one.steps) for one in outcome.patches] == [(2.0, 400)]
    first = sum(steps == 400 and seed == 0 for _, seed, steps in subject.jobs)
    assert first == 5  # the program as it is, and four patches
    assert subject.jobs[-4:] == [(None, 1, 400), (None, 2, 400), (2.0, 1, 400), (2.0, 2, 400)]


class _Rate(_Levels):
    """The best factor of the rate is 30, which no remedy proposes."""

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        return [Candidate(Patch([SetLearningRate(factor=10.0)]), "faster", "", 1.0)], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        level = {None: 1.0, 10.0: 0.5, 30.0: 0.2}.get(None if patch is None else _factor(patch), 0.7)
        return Course((level + 0.001 * seed,) * steps, None, 0.0)


def test_a_learning_rate_that_works_is_tuned() -> None:
    outcome = searched(_Rate(), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert [_factor(found.patch) for found in outcome.patches] == [30.0, 10.0]
    refuted = {_factor(one.patch) for one in outcome.refuted}
    assert refuted == {100.0, 3.0, 1.0}


class _Harmful(_Levels):
    """What is better in trials of 40 steps is worse after 400, for all but one."""

    lasts, noise = 4.0, 0.001

    def __init__(self) -> None:
        self.whole: list[float | None] = []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, _seed, steps = job
        if steps < 400 or patch is None:
            return super()._course(job)
        self.whole.append(_factor(patch))
        return Course((0.5 if _factor(patch) == self.lasts else 1.1,) * steps, None, 0.0)


def _proven(subject: _Levels, longest: int = 400) -> Outcome:
    return searched(subject, (0, 1, 2), 40, Workers(), longest=longest, prove=True)  # type: ignore[arg-type]


def test_what_is_worse_in_the_end_is_not_offered() -> None:
    subject = _Harmful()
    subject.lasts = 2.0
    outcome = _proven(subject)
    assert subject.whole[:2] == [7.0, 6.0]
    assert [_factor(one.patch) for one in outcome.patches] == [2.0]
    refuted = [one for one in outcome.trials if one.proof is not None and one not in outcome.patches]
    assert {one.verdict for one in refuted} == {Verdict.REFUTED}


def test_nothing_is_offered_if_all_that_were_trained_to_the_end_are_worse_there() -> None:
    subject = _Harmful()
    subject.lasts = 0.0
    outcome = _proven(subject)
    assert len(subject.whole) == 4
    assert outcome.patches == ()


def test_a_gain_that_lasts_is_proven_beside_one_other_and_no_more() -> None:
    subject = _Harmful()
    subject.lasts = 7.0
    outcome = _proven(subject)
    assert subject.whole == [7.0, 6.0]
    assert outcome.patches[0].proof is not None
    assert _factor(outcome.patches[0].patch) == 7.0


class _Grown(_TwoFaults):
    """As there, and after 400 steps one edit does as well as both."""

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, _, steps = job
        return super()._course(job) if steps < 400 else Course((1.0 - 0.6 * bool(patch),) * steps, None, 0.0)


def test_the_best_is_proven_beside_a_smaller_one_which_wins_if_both_end_alike() -> None:
    outcome = _proven(_Grown())
    assert [len(one.patch.edits) for one in outcome.trials if one.proof] == [1, 2]
    assert len(outcome.patches[0].patch.edits) == 1


class _Overtaken(_TwoFaults):
    """Of two edits that go well with the first, the slower one ends best."""

    SLOW = SetLearningRate(factor=4.0)

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        found, advice = super().candidates()
        return [*found, Candidate(Patch([self.SLOW]), "slow", "", 0.8)], advice

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        edits = () if patch is None else patch.edits
        slow = self.SLOW in edits
        gain = max(float(self.HIDDEN in edits), 0.9 * slow) if steps < 400 else 2.0 * slow
        return Course((1.0 - 0.3 * (self.OPEN in edits) * (1 + gain) + 0.001 * seed,) * steps, None, 0.0)


def test_the_next_best_is_proven_too_though_there_is_a_smaller_one() -> None:
    outcome = _proven(_Overtaken())
    proven = [one.patch.edits for one in outcome.trials if one.proof]
    assert sorted(map(len, proven)) == [1, 2, 2]
    assert outcome.patches[0].patch.edits == (_Overtaken.OPEN, _Overtaken.SLOW)


def test_trials_that_were_whole_trainings_need_no_other() -> None:
    subject = _Levels()
    subject.noise = 0.001
    outcome = _proven(subject, longest=40)
    assert outcome.patches
    assert not any(one.proof for one in outcome.trials)


class _Coarse(_Levels):
    """A metric that stands still, and losses that fall, of the last by a fifth."""

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        return [Candidate(Patch([SetLearningRate(factor=f)]), f"by {f}", "", 1 / f) for f in range(2, 8)], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, _, steps = job
        factor = 0.0 if patch is None else _factor(patch) or 0.0
        end = {0.0: 1.0, 6.0: 0.9, 7.0: 0.8}.get(factor, 1.1)
        return Course((1.0, *[end] * steps), 0.5, 0.0)


def test_where_the_metric_stands_still_the_loss_decides_who_goes_on() -> None:
    tried = [one.remedy for one in searched(_Coarse(), (0, 1, 2), 40, Workers()).trials]  # type: ignore[arg-type]
    assert tried[:4] == ["by 2", "by 3", "by 7", "by 6"]


class _Together(_Levels):
    """Two of the four edits of the standard recipe help, and only both together."""

    NEEDED = (SetLearningRate(factor=5.0), SetLearningRate(factor=7.0))
    RECIPE = Patch([SetLearningRate(factor=float(factor)) for factor in (4, 5, 6, 7)])

    def __init__(self, *, single: bool = False) -> None:
        self.single = single

    def candidates(self) -> tuple[list[Candidate], list[str]]:
        alone = Candidate(Patch([SetLearningRate(factor=2.0)]), "alone", "", 1.0)
        return [alone, Candidate(self.RECIPE, "standard", "", 1.0, last=True)], []

    def _course(self, job: tuple[Patch | None, int, int]) -> Course:
        patch, seed, steps = job
        edits = () if patch is None else patch.edits
        helps = all(edit in edits for edit in self.NEEDED) or (self.single and bool(edits))
        return Course((1.0 - 0.5 * helps + 0.001 * seed + 0.01 * bool(edits),) * steps, None, 0.0)


def test_the_standard_recipe_is_shrunk_to_what_it_needs() -> None:
    outcome = searched(_Together(), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert outcome.patches[0].patch.edits == _Together.NEEDED
    assert [len(one.patch.edits) for one in outcome.trials[:2]] == [1, 4]
    assert all(one.patch != _Together.RECIPE for one in outcome.refuted)


def test_the_standard_recipe_is_not_tried_where_a_single_patch_works() -> None:
    outcome = searched(_Together(single=True), (0, 1, 2), 40, Workers())  # type: ignore[arg-type]
    assert [one.remedy for one in outcome.patches] == ["alone"]
    assert "standard" not in {one.remedy for one in outcome.trials}
