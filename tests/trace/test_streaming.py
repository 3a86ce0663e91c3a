"""Compiled sums over many tensors against float64; what pages do with them is tested in tests/watch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evenflow.trace import streaming


def rows(*tensors: torch.Tensor) -> list[list[float]]:
    out = np.zeros((len(tensors), streaming.COLUMNS))
    addresses = np.array([tensor.data_ptr() for tensor in tensors])
    counts = np.array([tensor.numel() for tensor in tensors])
    streaming.read(addresses, counts, out.ctypes.data)
    found: list[list[float]] = out.tolist()
    return found


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-15, 1.0, 1e18, 1e30])
def test_blocks_of_one_tensor_may_differ_by_any_power(scale: float) -> None:
    x = torch.randn(3 * 4096 + 5, generator=torch.Generator().manual_seed(0))
    x[4096:8192] *= scale
    y = x.double()
    ((count, total, square, largest, nonfinite),) = rows(x)
    assert (count, nonfinite, largest) == (x.numel(), 0, x.abs().max().item())
    assert square == pytest.approx(y.square().sum().item(), rel=2e-6)
    assert total == pytest.approx(y.sum().item(), abs=2e-6 * y.abs().sum().item())


def test_entries_that_are_not_finite_leave_the_others_exact() -> None:
    x = torch.ones(10_000)
    x[[1, 5000, 9999]] = torch.tensor([math.nan, math.inf, -math.inf])
    assert rows(x, torch.zeros(0), torch.zeros(9)) == [[10_000, 9997, 9997, 1, 3], [0] * 5, [9, 0, 0, 0, 0]]


def test_entries_outside() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, math.nan] * 1000)
    assert streaming.outside(x.data_ptr(), x.numel(), -1.0, 1.0) == 3000


def test_totals_are_those_of_all_entries() -> None:
    x = torch.rand(3 * 4096 + 5, generator=torch.Generator().manual_seed(0)) * 1e-20
    bad = torch.tensor([1.0, math.inf, math.nan])
    tensors = [x, torch.zeros(0), bad[:2], bad]
    out = np.full(len(tensors), -1.0)
    addresses = np.array([tensor.data_ptr() for tensor in tensors])
    streaming.totals(addresses, np.array([tensor.numel() for tensor in tensors]), out)
    assert out[0] == pytest.approx(x.double().sum().item(), rel=2e-6)
    assert out[1:].tolist() == pytest.approx([0.0, math.inf, math.nan], nan_ok=True)
