"""The programs that were written blind: each builds and takes a step, and each has its facts."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis.fresh import FRESH
from benchmarks.diagnosis.fresh.entry import Collection, Entry
from benchmarks.diagnosis.fresh.verify import measured, seen, verified
from benchmarks.diagnosis.unseen import UNSEEN

from evenflow.diagnose.finding import CauseName, Symptom

ENTRIES = [(kind, one) for kind in (FRESH, UNSEEN) for one in kind.entries.values()]


@pytest.mark.parametrize(("collection", "one"), ENTRIES, ids=[one.name for _, one in ENTRIES])
def test_builds_and_takes_one_step(collection: Collection, one: Entry) -> None:
    fixed = collection.repaired(one.name)
    for program in (one.program(), fixed):
        if program is None:
            continue
        with torch.random.fork_rng(devices=[]):
            training = program.start(0)
            before = [p.clone() for model in training.models.values() for p in model.parameters()]
            figures = next(training.run(1))
            after = [p for model in training.models.values() for p in model.parameters()]
        assert figures
        assert program.metric is not None
        assert program is not fixed or any(not a.equal(b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("collection", [FRESH, UNSEEN], ids=["fresh", "unseen"])
def test_facts_bear_out_every_claim(collection: Collection) -> None:
    facts = collection.facts
    assert set(facts) == set(collection.entries)
    assert all(one["reproduced"] for one in facts.values())
    for subject in collection.subjects():
        assert set(subject.confirmed) <= set(subject.symptoms)
        assert subject.confirmed or not subject.faulty or not collection.strict
        assert subject.as_claimed(facts[subject.name]["metric"])
        assert bool(subject.causes) == subject.faulty
        assert subject.faulty == (subject.threshold is None)
        assert subject.split == "open", "rule authors have read both sets"


def test_claims_are_words_of_evenflow() -> None:
    causes, symptoms = ({word.value for word in kind} for kind in (CauseName, Symptom))
    for _, one in ENTRIES:
        assert set(one.causes) <= causes
        assert set(one.symptoms) <= symptoms


SOUND = {
    "loss": [2.0, 0.5],
    "finite": True,
    "gradient_norm": [1.0, 5.0],
    "least_to_largest": 0.1,
    "largest_to_last": 1.0,
    "faded": 1.0,
    "dead": 0.1,
    "saturated": 0.1,
    "swing": 0.1,
}


@pytest.mark.parametrize(
    ("symptom", "change"),
    [
        ("non_finite", {"finite": False}),
        ("vanishing_gradient", {"least_to_largest": 1e-4}),
        ("vanishing_gradient", {"faded": 1e-4}),
        ("vanishing_gradient", {"through_time": 1e-7}),
        ("exploding_gradient", {"gradient_norm": [1.0, 2e3]}),
        ("exploding_gradient", {"largest_to_last": 2e3}),
        ("dead_units", {"dead": 0.6}),
        ("saturation", {"saturated": 0.6}),
        ("loss_not_decreasing", {"loss": [2.0, 1.9]}),
        ("oscillating", {"loss": [2.0, 1.2], "swing": 0.4}),
    ],
)
def test_each_symptom_has_its_measure(symptom: str, change: dict[str, object]) -> None:
    assert seen(SOUND) == []
    assert seen({**SOUND, **change}) == [symptom]


def test_measures_see_what_hooks_can_see() -> None:
    tower = measured(FRESH.entries["fresh-sigmoid-tower"].program(), 0)
    assert tower["least_to_largest"] < 1e-3
    assert "vanishing_gradient" in seen(tower)


@pytest.mark.parametrize(
    ("collection", "name"),
    [(FRESH, "fresh-cut-in-forward"), (UNSEEN, "unseen-motion-without-a-graph")],
    ids=["fresh", "unseen"],
)
def test_frozen_facts_are_those_of_today(collection: Collection, name: str) -> None:
    assert verified(collection.entries[name], collection)["symptoms"] == collection.facts[name]["symptoms"]


def test_a_margin_leaves_out_what_is_near_its_limit() -> None:
    near = {**SOUND, "loss": [2.0, 1.82], "dead": 0.55, "saturated": 0.55, "least_to_largest": 9e-4}
    assert len(seen(near)) == 4
    assert seen(near, margin=1.25) == []
