"""Scores: what a tool said, weighed against what is known.

* A symptom is *found* if the tool names one that may rightly be reported
  (published, or seen when the program was trained without any tool). Recall of a
  single symptom counts only programs in which it was confirmed.
* Precision: of the symptoms named on faulty programs, the share that may rightly be reported.
* A cause is right if it is among those known; programs have 1.6 on average.
* A false alarm is a healthy program of which any symptom is named.
* A place is right if it is, or lies in, or contains one of the known modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from benchmarks.diagnosis.subject import Subject
from benchmarks.diagnosis.tools import Verdict

SYMPTOMS = (
    "vanishing_gradient",
    "exploding_gradient",
    "dead_units",
    "saturation",
    "non_finite",
    "loss_not_decreasing",
    "oscillating",
)


@dataclass(frozen=True)
class Outcome:
    """One tool on one program with one seed.

    Attributes:
        seconds: Processor time of the tool, the program's training included.
        training_seconds: That of the bare training.
        error: What the tool raised.
    """

    tool: str
    subject: Subject
    seed: int
    verdict: Verdict
    seconds: float
    training_seconds: float
    error: str | None = None

    @property
    def found(self) -> bool:
        """Whether a symptom that is there was named."""
        return bool(set(self.verdict.symptoms) & set(self.subject.symptoms))

    @property
    def alarmed(self) -> bool:
        return bool(self.verdict.symptoms)

    def cause_within(self, first: int) -> bool:
        """Whether a true cause is among the ``first`` that were named."""
        return bool(set(self.verdict.causes[:first]) & set(self.subject.causes))

    @property
    def place_first(self) -> bool:
        return any(_inside(place, self.subject.places) for place in self.verdict.places[:1])

    @property
    def place_any(self) -> bool:
        return any(_inside(place, self.subject.places) for place in self.verdict.places)

    @property
    def wrong(self) -> bool:
        """Whether something must be mended: a miss, a wrong first cause, a false alarm."""
        if not self.subject.faulty:
            return self.alarmed
        return not (self.found and self.cause_within(1))

    def as_json(self) -> dict[str, Any]:
        subject = self.subject
        return {
            "tool": self.tool,
            "program": subject.name,
            "kind": subject.kind,
            "origin": subject.origin,
            "split": subject.split,
            "seed": self.seed,
            "known": {"symptoms": subject.symptoms, "confirmed": subject.confirmed, "causes": subject.causes},
            "said": asdict(self.verdict),
            "seconds": round(self.seconds, 3),
            "training_seconds": round(self.training_seconds, 3),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], subject: Subject) -> Self:
        """The outcome of a record of :meth:`as_json`; what is known is taken from the subject of today."""
        said = Verdict(**{name: tuple(words) for name, words in record["said"].items()})
        seconds, training = record["seconds"], record["training_seconds"]
        return cls(record["tool"], subject, record["seed"], said, seconds, training, record["error"])


def _inside(place: str, known: tuple[str, ...]) -> bool:
    path = place.removesuffix(".weight").removesuffix(".bias")
    return any(
        path == one or path.startswith((f"{one}.", f"{one}:")) or one.startswith(f"{path}.") for one in known
    )


Rows = list[tuple[str, str]]


def summary(outcomes: Iterable[Outcome]) -> Rows:
    """Line → what one tool scored; every share comes with its counts."""
    every = list(outcomes)
    faulty = [one for one in every if one.subject.faulty]
    healthy = [one for one in every if not one.subject.faulty]
    named = [symptom for one in faulty for symptom in one.verdict.symptoms]
    right = [s for one in faulty for s in one.verdict.symptoms if s in one.subject.symptoms]
    placed = [one for one in faulty if one.subject.places]
    extra = [one.seconds - one.training_seconds for one in every]
    rows = [
        ("a symptom found", _share(faulty, lambda one: one.found)),
        ("symptom precision", _ratio(len(right), len(named))),
        ("cause first", _share(faulty, lambda one: one.cause_within(1))),
        ("cause among three", _share(faulty, lambda one: one.cause_within(3))),
        ("cause among all", _share(faulty, lambda one: one.cause_within(99))),
        ("causes named", _mean([len(one.verdict.causes) for one in faulty])),
        ("false alarms", _share(healthy, lambda one: one.alarmed)),
        ("place first", _share(placed, lambda one: one.place_first)),
        ("place among all", _share(placed, lambda one: one.place_any)),
    ]
    rows += [(f"recall {symptom}", _recall(faulty, symptom)) for symptom in SYMPTOMS]
    rows.append(("seconds beyond training: mean", _mean(extra)))
    rows.append(("seconds beyond training: most", f"{max(extra, default=0.0):.1f}"))
    rows.append(("errors", str(sum(one.error is not None for one in every))))
    return rows


def cause_table(outcomes: Iterable[Outcome]) -> list[tuple[str, str, str]]:
    """Cause → recall among three, and precision as first cause, over faulty programs."""
    faulty = [one for one in outcomes if one.subject.faulty]
    causes = sorted({cause for one in faulty for cause in (*one.subject.causes, *one.verdict.causes[:1])})
    table = []
    for cause in causes:
        having = [one for one in faulty if cause in one.subject.causes]
        naming = [one for one in faulty if one.verdict.causes[:1] == (cause,)]
        table.append(
            (
                cause,
                _share(having, lambda one, cause=cause: cause in one.verdict.causes[:3]),  # type: ignore[misc]
                _share(naming, lambda one, cause=cause: cause in one.subject.causes),  # type: ignore[misc]
            )
        )
    return table


def trial_table(outcomes: Iterable[Outcome]) -> list[tuple[str, str, str]]:
    """Verdict of an intervention → how many true and how many wrong causes got it, over faulty programs."""
    counts = Counter(
        (trial, cause in one.subject.causes)
        for one in outcomes
        if one.subject.faulty
        for cause, trial in zip(one.verdict.causes, one.verdict.trials, strict=False)
    )
    return [
        (trial, str(counts[trial, True]), str(counts[trial, False]))
        for trial in sorted({t for t, _ in counts})
    ]


def _recall(faulty: list[Outcome], symptom: str) -> str:
    having = [one for one in faulty if symptom in one.subject.confirmed]
    return _share(having, lambda one: symptom in one.verdict.symptoms)


def _share(outcomes: list[Outcome], test: Callable[[Outcome], bool]) -> str:
    return _ratio(sum(map(test, outcomes)), len(outcomes))


def _ratio(hits: int, of: int) -> str:
    return f"{hits / of:4.0%} ({hits}/{of})" if of else "–"


def _mean(values: list[int] | list[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "–"
