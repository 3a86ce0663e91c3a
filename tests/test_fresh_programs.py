"""The programs of benchmarks/diagnosis/fresh: each builds and takes a step, and each has its facts."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.diagnosis.fresh import entries, fresh, repaired
from benchmarks.diagnosis.fresh.entry import Entry, facts

ENTRIES = list(entries().values())


@pytest.mark.parametrize("one", ENTRIES, ids=[one.name for one in ENTRIES])
def test_builds_and_takes_one_step(one: Entry) -> None:
    fixed = repaired(one.name)
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


def test_facts_bear_out_every_claim() -> None:
    assert set(facts()) == {one.name for one in ENTRIES}
    assert all(facts()[one.name]["reproduced"] for one in ENTRIES)
    for subject in fresh():
        assert set(subject.confirmed) <= set(subject.symptoms)
        assert subject.as_claimed(facts()[subject.name]["metric"])
        assert bool(subject.causes) == subject.faulty
        assert subject.faulty == (subject.threshold is None)
        assert subject.split == "held out"
