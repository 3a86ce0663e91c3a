"""Attributes that are worked out once."""

from __future__ import annotations

from evenflow.predict.lazy import cached_property, kept


class _Counted:
    calls = 0

    @cached_property
    def value(self) -> int:
        """How often it was worked out."""
        self.calls += 1
        return self.calls


def test_it_is_worked_out_once_for_each_instance() -> None:
    first, second = _Counted(), _Counted()
    assert (first.value, first.value, second.value) == (1, 1, 1)
    assert vars(first) == {"calls": 1, "value": 1}
    assert _Counted.__dict__["value"].__doc__ == "How often it was worked out."


def test_a_function_of_one_object_is_asked_once_for_each() -> None:
    @kept
    def next_call(of: _Counted) -> int:
        of.calls += 1
        return of.calls

    first, second = _Counted(), _Counted()
    assert (next_call(first), next_call(first), next_call(second)) == (1, 1, 1)
    assert first.calls == 1
