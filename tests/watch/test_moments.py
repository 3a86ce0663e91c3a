"""The fast reductions against float64 and the exact kernel, and where float32 alone would fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evenflow.trace.statistics import tensor_stats
from evenflow.watch.moments import (
    DeviceMoments,
    Moments,
    device_moments,
    fetch,
    joint_norm,
    merge,
    norms,
    take,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def close(tensor: Tensor, relative: float = 4e-6) -> None:
    """Both ways of taking moments agree with the exact kernel, to the stated error of float32 sums."""
    exact = tensor_stats(tensor)
    on_device = DeviceMoments(
        tensor.numel() * (2 if tensor.is_complex() else 1), device_moments(_real(tensor))
    )
    for moments in fetch([take(tensor), on_device]):
        found = moments.stats()
        assert found.count == exact.count
        assert found.nonfinite_count == exact.nonfinite_count
        assert found.abs_max == exact.abs_max
        assert found.mean_square == pytest.approx(exact.mean_square, rel=relative, abs=0.0)
        assert found.mean == pytest.approx(exact.mean, abs=relative * math.sqrt(exact.mean_square))


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 70000, 600000])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-22, 1e-15, 1.0, 1e15, 1e30])
def test_any_size_and_scale(size: int, scale: float) -> None:
    close(torch.randn(size, generator=generator()) * scale)


def test_a_plain_float32_norm_would_lose_a_vanished_gradient() -> None:
    gradient = torch.full((100,), 1e-25)
    assert torch.linalg.vector_norm(gradient) == 0.0
    (moments,) = fetch([take(gradient)])
    assert moments.stats().rms == pytest.approx(1e-25, rel=1e-6)
    assert norms([gradient, torch.ones(4)]).tolist() == pytest.approx([1e-24, 2.0], rel=1e-6)


def test_an_overflowing_norm_is_taken_again() -> None:
    assert norms(
        [torch.full((4,), 1e30), torch.full((4,), 1e4, dtype=torch.float16)]
    ).tolist() == pytest.approx([2e30, 2e4], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_formats(dtype: torch.dtype) -> None:
    close(torch.randn(5000, dtype=torch.complex64, generator=generator()).to(dtype)
          if dtype.is_complex else torch.randn(5000, generator=generator()).to(dtype))  # fmt: skip


def test_double_precision_far_below_float32() -> None:
    close(torch.full((10,), 1e-200, dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_counted_and_left_out(value: float) -> None:
    x = torch.randn(1000, generator=generator())
    x[[3, 500]] = value
    close(x)
    (moments,) = fetch([take(x)])
    assert moments.nonfinite == 2
    close(torch.full((3,), value))


def test_layouts() -> None:
    x = torch.randn(4, 6, 5, 3, generator=generator())
    for view in (
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 2),
        x[:, ::2],
        x[:1].expand(4, -1, -1, -1),
    ):
        close(view)


def test_a_sparse_gradient() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([2, 2, 4])).sum().backward()
    assert table.weight.grad is not None
    (moments,) = fetch([take(table.weight.grad)])
    assert moments == Moments(10, 6.0, 10.0, 2.0), "row 2 is used twice: its gradients add up to 2"
    assert norms([table.weight.grad]).item() == pytest.approx(10**0.5)


def test_nothing_is_written() -> None:
    x = torch.randn(100, generator=generator())
    before, version = x.clone(), x._version
    take(x)
    device_moments(x)
    norms([x])
    assert torch.equal(x, before)
    assert x._version == version


def test_merging_is_that_of_the_union() -> None:
    a, b = torch.randn(10, generator=generator()), torch.full((3,), 7.0)
    (both,) = fetch([take(torch.cat([a, b]))])
    merged = merge(fetch([take(a), take(b)]))
    assert merged[:1] + merged[3:] == both[:1] + both[3:]
    assert merged.square == pytest.approx(both.square)
    assert Moments(2, 1.0, 4.0, 2.0).stats(scale=2.0, sign=-1.0).mean == -0.25


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_joint_norm_is_that_of_all_entries(scale: float) -> None:
    tensors = [torch.randn(n, generator=generator()) * scale for n in (3, 50)]
    expected = torch.linalg.vector_norm(torch.cat(tensors).double()).item()
    assert joint_norm(tensors).item() == pytest.approx(expected, rel=1e-6)
    assert joint_norm([*tensors, torch.zeros(2, dtype=torch.float16)]).item() == pytest.approx(
        expected, rel=1e-6
    )
