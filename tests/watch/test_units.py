"""Dead and saturated shares of watched activation modules, against what the measured step says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenflow.flow import Role
from evenflow.watch import watch


def _shares(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, tuple[Any, Any]]:
    """Module → its dead and saturated shares in one step of as many micro-batches."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with watch(model, optimizer, budget=None) as watcher:
        for batch in batches:
            model(batch).square().mean().backward()
        optimizer.step()
        watcher.log(loss=0.0)
    rows = watcher.run.flow(0).select(Role.ACTIVATION)
    return {row.site.path: (row.dead_fraction, row.saturated_fraction) for row in rows}


def test_the_shares_are_those_of_the_outputs() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 9), nn.Tanh(), nn.Linear(9, 7), nn.Sigmoid()
        )
        x = torch.randn(3, 4)
    with torch.no_grad():
        for name in ("2.weight", "4.weight"):
            model.get_parameter(name).mul_(8.0)
        hidden = F.relu(model[0](x))
        bounded = torch.tanh(model[2](hidden))
        last = torch.sigmoid(model[4](bounded))
    shares = _shares(model, [x])
    assert shares["1"] == (pytest.approx((hidden == 0).all(0).float().mean().item()), None)
    assert shares["1"][0] != 0.0
    assert shares["3"] == (None, pytest.approx((bounded**2 > 0.9).float().mean().item()))
    flat = last * (1 - last) < 0.25 * 0.1
    assert shares["5"] == (None, pytest.approx(flat.float().mean().item()))
    assert shares["0"] == (None, None)


def test_channels_are_the_units_of_a_convolution() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(2, 10, 3), nn.ReLU(), nn.Conv1d(10, 4, 3), nn.ReLU())
        x = torch.randn(3, 2, 8)
    with torch.no_grad():
        model.get_parameter("0.bias").sub_(torch.tensor([9.0] * 4 + [0.0] * 6))
    assert _shares(model, [x])["1"] == (pytest.approx(0.4), None)


def test_micro_batches_share_the_least_dead_units_and_the_mean_of_the_saturated() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.Tanh())
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0], [-1.0]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[5.0, 0.1]]))
        model.get_parameter("0.bias").zero_()
        model.get_parameter("2.bias").zero_()
    up, both = torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [1.0]])
    shares = _shares(model, [up, both])
    assert shares["1"] == (0.0, None), "the second unit wakes in the second micro-batch"
    assert shares["3"] == (None, pytest.approx((1.0 + 0.5) / 2))
    assert _shares(model, [up])["1"] == (0.5, None)
    one = torch.tensor([[-1.0]])
    assert _shares(model, [up, one])["3"] == (None, pytest.approx(2 / 3)), "the larger pass counts for more"


def test_updates_that_rounding_swallows_are_counted_in_short_formats() -> None:
    model = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 0.001, 1.0]]))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with watch(model, optimizer, budget=None) as watcher:
        model(torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        watcher.log(loss=0.0)
    (lost,) = watcher.run.parameter("lost_update_fraction").values()
    assert lost.values.tolist() == [0.5], "1 − .001 is 1 again twice; the last entry has no gradient"
