"""Routing: choices drawn once, products by group, and what hangs on them, against real draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

from evenflow.errors import ModelError
from evenflow.predict import predict
from evenflow.predict.rules.routing import drawn
from evenflow.predict.table import independent, measured

WIDTH, EXPERTS, TOKENS = 64, 4, 32


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


class Experts(nn.Module):
    """Each token to the two experts with the largest scores."""

    def __init__(self, *, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped
        self.first, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
        self.weight = nn.Parameter(torch.empty(EXPERTS, WIDTH, WIDTH))
        nn.init.normal_(self.weight, 0, WIDTH**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        p, chosen = self.gate(x).softmax(-1).topk(2, -1)
        p = p / p.sum(-1, keepdim=True)
        return self.by_group(x, p, chosen) if self.grouped else self.one_by_one(x, p, chosen)

    def by_group(self, x: Tensor, p: Tensor, chosen: Tensor) -> Tensor:
        ordered, order = chosen.flatten().sort()
        ends = torch.arange(1, EXPERTS + 1, device=x.device)
        offsets = (ordered[None] < ends[:, None]).sum(1).to(torch.int32)
        y = F.grouped_mm(x[order // 2], self.weight, offs=offsets) * p.flatten()[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=x.device)
        return y[back].view(len(x), 2, WIDTH).sum(1)

    def one_by_one(self, x: Tensor, p: Tensor, chosen: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(EXPERTS):
            token, place = torch.where(chosen == expert)
            out = out.index_add(0, token, x[token] @ self.weight[expert] * p[token, place, None])
        return out


@pytest.mark.parametrize("grouped", [True, False])
def test_experts(grouped: bool) -> None:
    found = disagreement(lambda: Experts(grouped=grouped), randn(TOKENS, WIDTH))
    site, excess = worst(found)
    assert excess < 0.05, site


class Router(nn.Module):
    """Scores that differ, of which the two largest count."""

    def __init__(self, *, normalised: bool) -> None:
        super().__init__()
        self.gate, self.weight = nn.Linear(WIDTH, EXPERTS, bias=False), nn.Parameter(torch.empty(2, 32))
        nn.init.normal_(self.gate.weight, 0, WIDTH**-0.5)
        nn.init.normal_(self.weight)
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1).topk(2, -1).values
        return (p / p.sum(-1, keepdim=True) if self.normalised else p) @ self.weight


@pytest.mark.parametrize("normalised", [True, False])
def test_gradients_of_scores_are_those_of_the_largest(normalised: bool) -> None:
    site, excess = worst(disagreement(lambda: Router(normalised=normalised), randn(128, WIDTH)), sigmas=2)
    assert excess < 0.02, site


class Sinks(nn.Module):
    """GPT-OSS's attention: a score of no key beside the others, and all less the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.sinks = nn.Parameter(torch.empty(2))
        nn.init.normal_(self.sinks)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.first(x).unflatten(-1, (3, 2, -1)).transpose(1, 3)
        q, k, v = rows.unbind(2)
        scores = q @ k.mT / 4 + torch.full(x.shape[1:2] * 2, -torch.inf, device=x.device).triu(1)
        scores = torch.cat([scores, self.sinks[:, None, None].expand(len(x), -1, x.shape[1], -1)], -1)
        scores = scores - scores.max(-1, keepdim=True).values
        y: Tensor = self.last((scores.softmax(-1)[..., :-1] @ v).transpose(1, 2).flatten(2))
        return y


def test_scores_less_the_largest() -> None:
    site, excess = worst(disagreement(Sinks, randn(8, 12, WIDTH)))
    assert excess < 0.05, site


class Largest(nn.Module):
    """The largest of 24 channels."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.first, self.last, self.keep = nn.Linear(WIDTH, 24 * WIDTH), nn.Linear(WIDTH, WIDTH), keep

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).unflatten(-1, (WIDTH, 24)).max(-1, keepdim=self.keep).values
        z: Tensor = self.last(y.flatten(1))
        return z


@pytest.mark.parametrize("keep", [True, False])
def test_the_largest_entry(keep: bool) -> None:
    site, excess = worst(disagreement(lambda: Largest(keep=keep), randn(TOKENS, WIDTH)))
    assert excess < 0.03, site


PLACES = randn(TOKENS, WIDTH).argsort(1)


class Picked(nn.Module):
    """Reads by index along the last dimension, or writes."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH if writes else 16, WIDTH)
        self.places = PLACES if writes else PLACES[:, :16]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        places = self.places.to(x.device)
        x = torch.zeros_like(x).scatter(1, places, x) if self.writes else x.gather(1, places)
        y: Tensor = self.last(x)
        return y


@pytest.mark.parametrize("writes", [True, False])
def test_known_places(writes: bool) -> None:
    site, excess = worst(disagreement(lambda: Picked(writes=writes), randn(TOKENS, WIDTH)))
    assert excess < 0.02, site


def test_a_draw_has_the_moments_of_its_table() -> None:
    table = measured(randn(12, 1) + 2 * randn(1, 8) + independent_noise())
    found = np.mean([measured(x).second for x in drawn(table, 400)], 0)
    assert found == pytest.approx(table.second, abs=0.15 * table.mean_square)
    assert drawn(independent((5, 1, 3), 1.0), 2).shape == (2, 5, 1, 3)


def independent_noise() -> Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(9))


def test_a_shape_that_depends_on_random_numbers_is_refused() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return y[y > 0]

    with pytest.raises(ModelError, match="whose shape depends on random numbers"):
        predict(Kept, randn(TOKENS, WIDTH))
