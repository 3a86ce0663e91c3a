"""Dominators and chains, against brute force over all paths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenflow.flow.chain import ROOT, between, chain, immediate_dominators


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, tuple[int, ...]]:
    """Acyclic graphs of up to 9 ops; inputs come before what consumes them."""
    size = draw(st.integers(1, 9))
    return {
        op: tuple(sorted(draw(st.sets(st.integers(0, op - 1), max_size=3)))) if op else ()
        for op in range(size)
    }


def reachable_from_the_loss(inputs: dict[int, tuple[int, ...]], without: int | None) -> set[int]:
    """Ops that some way from a sink leads to, not passing through ``without``."""
    consumed = {source for sources in inputs.values() for source in sources}
    pending = [op for op in inputs if op not in consumed and op != without]
    seen = set(pending)
    while pending:
        for source in inputs[pending.pop()]:
            if source not in seen and source != without:
                seen.add(source)
                pending.append(source)
    return seen


@given(graphs())
def test_dominators_are_the_ops_that_cannot_be_avoided(inputs: dict[int, tuple[int, ...]]) -> None:
    dominator = immediate_dominators(inputs)
    for op in inputs:
        expected = {
            other for other in inputs if other != op and op not in reachable_from_the_loss(inputs, other)
        }
        found, up = set(), dominator[op]
        while up != ROOT:
            found.add(up)
            up = dominator[up]
        assert found == expected


@given(graphs())
def test_a_chain_starts_at_a_source_and_has_no_gap(inputs: dict[int, tuple[int, ...]]) -> None:
    links = chain(inputs)
    assert inputs[links[0]] == ()
    dominator = immediate_dominators(inputs)
    assert [dominator[op] for op in links] == [*links[1:], ROOT]


def test_a_residual_stream() -> None:
    #  0 → 1 → 2 ─┐      3 = 0 + 2,  then 4, 5 and 6 = 3 + 5
    #  └──────────3 → 4 → 5 → 6
    inputs = {0: (), 1: (0,), 2: (1,), 3: (0, 2), 4: (3,), 5: (4,), 6: (3, 5)}
    assert chain(inputs) == (0, 3, 6)
    assert between(inputs, 0, 3) == (1, 2, 3)
    assert between(inputs, 3, 6) == (4, 5, 6)


def test_of_two_sources_the_longer_chain_counts_and_of_equals_the_earlier() -> None:
    assert chain({0: (), 1: (), 2: (1,), 3: (2, 0)}) == (1, 2, 3)
    assert chain({0: (), 1: (), 2: (0, 1)}) == (0, 2)


def test_no_ops_no_chain() -> None:
    assert chain({}) == ()
