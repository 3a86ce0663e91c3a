"""Spreads of samples and tokens: what measure finds, on average over draws."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch
from torch import Tensor, nn

from evenflow.flow import Role, Site
from evenflow.measure import measure
from evenflow.predict import predict

WIDTH = 128


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def net() -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))


INPUTS = {
    "samples": randn(16, WIDTH),
    "tokens": randn(6, 5, WIDTH) + randn(6, 1, WIDTH),
    "alike": randn(1, WIDTH) + 0.1 * randn(16, WIDTH),
}


@pytest.mark.parametrize("name", INPUTS)
def test_spreads_are_those_of_measure(name: str) -> None:
    x = INPUTS[name]
    predicted = {row.site: row for row in predict(net, x).select(Role.ACTIVATION)}
    found: dict[tuple[Site, str], list[tuple[float, float]]] = {}
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = net()
        for row in measure(model, x).select(Role.ACTIVATION):
            for column in ("sample_spread", "token_spread"):
                ours, theirs = getattr(predicted[row.site], column), getattr(row, column)
                assert (ours is None) == (theirs is None), row.site
                if ours is not None:
                    found.setdefault((row.site, column), []).append((ours, theirs))
    assert {site for site, _ in found} == set(predicted)
    assert any(column == "token_spread" for _, column in found) == (x.ndim == 3)
    for what, pairs in found.items():
        measured = [theirs for _, theirs in pairs]
        error = stdev(measured) / len(measured) ** 0.5
        assert pairs[0][0] == pytest.approx(mean(measured), abs=4 * error + 0.01), what
        assert error < 0.03, what
