"""Weights as initialisers leave them, and after some steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose.fresh import are_fresh
from evenflow.flow import Role
from evenflow.measure import measure


def _is_fresh(model: nn.Module) -> bool:
    return are_fresh(measure(model, torch.randn(8, 3, 6, 6), torch.sum).select(Role.PARAMETER))


def _net(change: Callable[[Tensor], object] | None = None) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 9))
    for module in model:
        if change is not None and isinstance(module, nn.Conv2d | nn.Linear):
            change(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    "change",
    [
        None,
        nn.init.kaiming_normal_,
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
        lambda weight: nn.init.normal_(weight, std=0.02),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_common_initialisers_leave_their_marks(change: Callable[[Tensor], object] | None, seed: int) -> None:
    torch.manual_seed(seed)
    assert _is_fresh(_net(change))


def test_a_few_steps_wipe_them_off() -> None:
    for change in (None, nn.init.kaiming_normal_):
        model = _net(change)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 3, 6, 6)).square().mean().backward()
            optimizer.step()
        assert not _is_fresh(model)


def test_an_unusual_deviation_is_no_proof() -> None:
    assert not _is_fresh(_net(lambda weight: nn.init.normal_(weight, std=0.5)))
