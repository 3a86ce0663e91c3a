"""From which outputs an output was made: walks through the autograd graph, short and long."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import evenflow as ef
from evenflow.flow import Role
from evenflow.watch import passes


class Node:
    """Stands for a node of an autograd graph."""

    def __init__(self, number: int, parents: list[Node]) -> None:
        self.number, self.next_functions = number, tuple((parent, 0) for parent in parents)

    def _sequence_nr(self) -> int:
        return self.number


@pytest.mark.parametrize("seed", range(20))
def test_a_long_walk_finds_what_a_short_one_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(seed)
    nodes: list[Node] = []
    for number in range(60):
        nodes.append(Node(number, draws.sample(nodes, min(len(nodes), draws.randint(0, 3)))))
    known: dict[int, int] = {}
    walked: dict[int, frozenset[int]] = {}
    for order, node in enumerate(nodes):
        short = passes._made_from(node, known, {})
        with monkeypatch.context() as patched:
            patched.setattr(passes, "_LONG_WALK", 0)
            assert passes._made_from(node, known, walked) == short
        if draws.random() < 0.3:
            known[node.number] = order
            walked.pop(node.number, None)


class Looped(nn.Module):
    """A leaky integrator in a loop, whose state no module returns: all of the past is near."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            state = 0.9 * state + self.read(x[:, t]).tanh()
        result: Tensor = self.out(state)
        return result


def test_an_output_of_a_loop_is_made_from_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, sources = 90, []
    for limit in (10**6, 128):
        monkeypatch.setattr(passes, "_LONG_WALK", limit)
        torch.manual_seed(0)
        model = Looped()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with ef.watch(model, optimizer, path=tmp_path / str(limit), budget=None) as run:
            loss = model(torch.randn(2, steps, 3)).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        rows = list(ef.open_run(tmp_path / str(limit)).flow().select(Role.ACTIVATION))
        sources.append([row.inputs for row in rows])
    assert sources[0] == sources[1]
    assert len(sources[0][-1]) == steps
