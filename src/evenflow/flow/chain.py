"""The chain: the tensors through which all of the gradient passes.

A gradient flows from the loss back to every op along the edges of the op
graph. In a plain network the graph is a line; with skips and branches it is
not, yet some tensors are still unavoidable: the outputs of residual additions,
for example. Op ``a`` *dominates* op ``b`` when every way from the loss to ``b``
leads through ``a``. The dominators of the network's first op, from the first op
up to the loss, form the chain. Between two neighbours of the chain lies one op
or one branching block, and since the chain has no gaps, log gains along it add
up to the log of the whole attenuation exactly.

References:
    K. D. Cooper, T. J. Harvey, K. Kennedy, "A Simple, Fast Dominance
    Algorithm", 2001, Figure 3 (here for an acyclic graph, one pass).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROOT = -1
"""A virtual node above all ops that no op consumes (normally one: the loss)."""


def immediate_dominators(inputs: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """The nearest unavoidable op between each op and the loss.

    Args:
        inputs: For each op (by its order of execution) the orders of the ops
            that it consumed; every input must be a smaller number.

    Returns:
        For each op its immediate dominator; :data:`ROOT` for the ops that no
        other op dominates.
    """
    consumers: dict[int, list[int]] = {op: [] for op in inputs}
    for op, sources in inputs.items():
        for source in sources:
            if source in consumers:
                consumers[source].append(op)
    dominator: dict[int, int] = {ROOT: ROOT}
    depth: dict[int, int] = {ROOT: 0}

    def meet(a: int, b: int) -> int:
        while a != b:
            if depth[a] >= depth[b]:
                a = dominator[a]
            else:
                b = dominator[b]
        return a

    for op in sorted(inputs, reverse=True):  # consumers come before what they consume
        common, *others = consumers[op] or [ROOT]
        for other in others:
            common = meet(common, other)
        dominator[op] = common
        depth[op] = depth[common] + 1
    del dominator[ROOT]
    return dominator


def chain(inputs: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The unavoidable ops above the network's first op, in forward order.

    Candidates for the first op are those that consume no other op's output (they
    read the batch). Of several, such as token and position embeddings, the one
    with the longest chain counts, and of equals the one that ran first.

    Args:
        inputs: As in :func:`immediate_dominators`.
    """
    dominator = immediate_dominators(inputs)
    length: dict[int, int] = {ROOT: 0}
    for op in sorted(dominator, reverse=True):
        length[op] = length[dominator[op]] + 1
    first = [op for op, sources in inputs.items() if not sources]
    links = []
    op = max(first, key=lambda op: (length[op], -op), default=ROOT)
    while op != ROOT:
        links.append(op)
        op = dominator[op]
    return tuple(links)


def between(inputs: Mapping[int, Sequence[int]], first: int, last: int) -> tuple[int, ...]:
    """The ops on any way from ``first`` to ``last``, in forward order, without ``first`` itself."""
    below: set[int] = set()  # the ops that last depends on, back to first
    open_ = [last]
    while open_:
        op = open_.pop()
        if op > first and op in inputs and op not in below:
            below.add(op)
            open_ += inputs[op]
    found = {first}
    for op in sorted(below):
        if not found.isdisjoint(inputs[op]):
            found.add(op)
    return tuple(sorted(found - {first}))
