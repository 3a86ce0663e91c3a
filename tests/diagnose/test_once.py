"""Answers about a Flow are computed once, and go when it goes."""

from __future__ import annotations

import gc
import random
import weakref

from evenflow.diagnose.graph import op_graph
from evenflow.diagnose.once import once
from evenflow.flow import Flow, Role, Row, Site, Stats
from evenflow.flow.chain import between


def test_one_graph_for_all_who_ask_as_long_as_the_flow_is() -> None:
    row = Row(Site("a", "relu", Role.ACTIVATION_GRADIENT), order=0, shape=(2,), stats=Stats(2, 0.0, 1.0, 1.0))
    flow = Flow([row], "measured")
    graph = weakref.ref(op_graph(flow))
    assert op_graph(flow) is graph()
    assert op_graph(Flow([row], "measured")) is not graph()
    del flow
    gc.collect()
    assert graph() is None


def test_other_arguments_are_other_questions() -> None:
    asked: list[int] = []

    class Thing: ...

    @once
    def question(thing: Thing, number: int) -> int:
        asked.append(number)
        return number

    thing = Thing()
    assert [question(thing, number) for number in (1, 2, 1, 2)] == [1, 2, 1, 2]
    assert asked == [1, 2]


def test_between_is_what_both_ends_reach() -> None:
    """Against the definition: ops that descend from the first and lead to the last."""
    chance = random.Random(0)
    for _ in range(200):
        inputs = {op: chance.sample(range(op), min(op, chance.randrange(3))) for op in range(12)}
        reach = {op: {op} for op in inputs}
        for op, sources in inputs.items():
            reach[op].update(*(reach[source] for source in sources))
        first, last = sorted(chance.sample(range(12), 2))
        expected = [op for op in inputs if op != first and first in reach[op] and op in reach[last]]
        assert list(between(inputs, first, last)) == expected
