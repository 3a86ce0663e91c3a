"""Which of several causes is named first."""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.diagnose import Cause, CauseName, Diagnosis, Finding, Severity, Symptom
from evenflow.diagnose.causality import UPSTREAM, upstream_first

LARGE, DEAD, INPUT = CauseName.LEARNING_RATE_TOO_HIGH, CauseName.DEAD_RELU, CauseName.UNSCALED_INPUT


def _order(*causes: tuple[CauseName, float]) -> list[CauseName]:
    return [cause.name for cause in upstream_first([Cause(name, c, "") for name, c in causes])]


def test_what_brings_about_comes_before_what_is_brought_about_however_sure_that_is() -> None:
    assert _order((DEAD, 1.0), (LARGE, 0.9), (INPUT, 0.8)) == [INPUT, LARGE, DEAD]
    assert _order((DEAD, 1.0), (LARGE, 0.9)) == [LARGE, DEAD]
    assert _order((DEAD, 1.0), (LARGE, 0.4)) == [DEAD, LARGE], "less than probable"


def test_weights_that_are_too_small_leave_units_silent_and_data_make_a_normalisation_needed() -> None:
    assert _order((DEAD, 1.0), (CauseName.INIT_TOO_SMALL, 0.9)) == [CauseName.INIT_TOO_SMALL, DEAD]
    norm = CauseName.MISSING_NORMALIZATION
    assert _order((norm, 1.0), (LARGE, 0.9), (INPUT, 0.8)) == [INPUT, norm, LARGE]


def test_data_that_saturate_gates_make_a_recurrence_forget() -> None:
    assert _order((CauseName.LONG_RECURRENCE, 1.0), (INPUT, 0.9)) == [INPUT, CauseName.LONG_RECURRENCE]


def test_what_does_not_bear_on_each_other_keeps_its_order() -> None:
    causes = (CauseName.DEPTH_WITHOUT_SKIP, 0.9), (CauseName.FROZEN_OR_DETACHED, 0.8), (INPUT, 0.7)
    assert _order(*causes) == [name for name, _ in causes]


def test_no_cause_brings_itself_about_by_way_of_others() -> None:
    def above(names: Iterable[CauseName]) -> set[CauseName]:
        return {source for name in names for source in UPSTREAM.get(name, ())}

    for cause in UPSTREAM:
        reached, found = {cause}, set[CauseName]()
        while reached := above(reached) - found:
            found |= reached
        assert cause not in found


def test_a_refuted_cause_explains_nothing_and_a_confirmed_one_may_be_a_later_link_of_the_chain() -> None:
    def order(*causes: Cause) -> list[CauseName]:
        finding = Finding("EF202", Symptom.DEAD_UNITS, Severity.WARNING, "1", "", causes=causes)
        return [cause.name for cause in Diagnosis((finding,)).causes]

    dead, large = Cause(DEAD, 0.5, "", confirmed=True), Cause(LARGE, 0.9, "")
    assert order(dead, large, Cause(INPUT, 1.0, "", confirmed=False)) == [LARGE, DEAD, INPUT]
    assert order(dead, Cause(CauseName.DEPTH_WITHOUT_SKIP, 0.9, "")) == [DEAD, CauseName.DEPTH_WITHOUT_SKIP]
