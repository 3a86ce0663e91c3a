"""Answers about one Flow that many rules ask for: computed once, and kept for as long as the Flow is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

Subject = TypeVar("Subject")
Rest = ParamSpec("Rest")
Answer = TypeVar("Answer")


def once(
    function: Callable[Concatenate[Subject, Rest], Answer],
) -> Callable[Concatenate[Subject, Rest], Answer]:
    """A function that computes its answer for each subject, and further arguments, once.

    Args:
        function: Its first argument is not changed as long as it lives, and its
            answer does not refer to it; the others, by place, are hashable.
    """
    answers: WeakKeyDictionary[Subject, dict[Hashable, Answer]] = WeakKeyDictionary()

    @wraps(function)
    def kept(subject: Subject, /, *rest: Rest.args, **named: Rest.kwargs) -> Answer:
        known = answers.setdefault(subject, {})
        key = (rest, tuple(named.items()))
        if key not in known:
            known[key] = function(subject, *rest, **named)
        return known[key]

    return kept
