"""Dead units of small outputs, and of large ones, which are read in part first."""

from __future__ import annotations

import pytest
import torch

from evenflow.trace.units import dead_fraction


@pytest.mark.parametrize("shape", [(8, 10, 4, 4), (64, 10, 16, 16), (1, 10, 100, 100)])
def test_dead_channels_are_silent_for_all_samples(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, :4] = 0.0
    x[-1, 3, -1, -1] = 1.0  # speaks once, at the very end
    assert dead_fraction("relu", x, channels_first=True) == pytest.approx(0.3)


def test_dead_entries_of_the_last_axis() -> None:
    x = torch.rand(3000, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, 7] = x[:, 9] = 0.0
    x[2999, 9] = torch.nan
    assert dead_fraction("relu", x, channels_first=False) == pytest.approx(1 / 40)
    assert dead_fraction("tanh", x, channels_first=False) is None
