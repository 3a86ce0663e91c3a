"""The fast reductions against float64 and the exact kernel, and where float32 alone would fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evenflow.trace.statistics import tensor_stats
from evenflow.watch import moments
from evenflow.watch.moments import Moments, Page, device_moments, flat, merge, reference
from evenflow.watch.norms import joint_norm, norms, sums


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on compiled code and on PyTorch, which is its reference."""
    if request.param == "torch":
        monkeypatch.setattr(moments, "streams", lambda: None)
    else:
        assert moments.streams() is not None, "the development environment has numba"


def read(tensor: Tensor) -> Moments:
    """What a page says of one tensor."""
    page = Page(1)
    page.put(0, tensor)
    return Moments(*page.read(1)[0].tolist())


def close(tensor: Tensor, relative: float = 4e-6) -> None:
    """All ways of taking moments agree with the exact kernel, to the stated error of float32 sums."""
    exact = tensor_stats(tensor)
    on_device = Moments(*device_moments(_real(tensor)).tolist())
    for found in (read(tensor), on_device, reference(flat(tensor))):
        finite = found.size - found.nonfinite
        assert found.size == exact.count
        assert found.nonfinite == exact.nonfinite_count
        assert found.largest == exact.abs_max
        if finite:
            assert found.square / finite == pytest.approx(exact.mean_square, rel=relative, abs=0.0)
            error = relative * math.sqrt(exact.mean_square)
            assert found.total / finite == pytest.approx(exact.mean, abs=error)
        else:
            assert (found.total, found.square) == (0.0, 0.0)


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 70000, 600000])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-22, 1e-15, 1.0, 1e15, 1e30])
def test_any_size_and_scale(size: int, scale: float) -> None:
    close(torch.randn(size, generator=generator()) * scale)


def test_a_plain_float32_norm_would_lose_a_vanished_gradient() -> None:
    gradient = torch.full((100,), 1e-25)
    assert torch.linalg.vector_norm(gradient) == 0.0
    assert math.sqrt(read(gradient).square / 100) == pytest.approx(1e-25, rel=1e-6)
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
    assert read(x).nonfinite == 2
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
    assert read(table.weight.grad) == Moments(10, 6.0, 10.0, 2.0), (
        "row 2 is used twice: its gradients add up to 2"
    )
    assert norms([table.weight.grad]).item() == pytest.approx(10**0.5)


def test_nothing_is_written() -> None:
    x = torch.randn(100, generator=generator())
    before, version = x.clone(), x._version
    read(x)
    device_moments(x)
    norms([x])
    assert torch.equal(x, before)
    assert x._version == version


def some() -> list[Tensor]:
    """Tensors of several sizes, formats and layouts."""
    sizes = (70_000, 3, 4096, 0, 1, 5000)
    found = [torch.randn(size, generator=generator()) for size in sizes]
    return [*found, torch.randn(6, 8, generator=generator()).t(), torch.ones(5, dtype=torch.float64)]


@pytest.mark.parametrize("plain", [True, False])
def test_many_at_once_are_as_one_by_one(plain: bool) -> None:
    tensors = [t for t in some() if not plain or moments.is_plain(t)]
    page = Page(len(tensors) + 2)
    page.put_all(2, tensors)
    assert page.read(2).tolist() == [[0.0] * 5] * 2, "rows in front are untouched"
    found = page.read(len(tensors) + 2)[2:]
    assert [Moments(*row) for row in found.tolist()] == [read(t) for t in tensors]


def test_a_page_grows_and_what_stands_on_it_stays() -> None:
    page = Page(2)
    tensors = [torch.full((2,), float(value)) for value in range(20)]
    for row, tensor in enumerate(tensors):
        page.put(row, tensor)
    assert page.read(20)[:, 1].tolist() == [2.0 * value for value in range(20)]
    assert page.read(3).shape == (3, 5)


def test_merging_is_that_of_the_union() -> None:
    a, b, c = torch.randn(10, generator=generator()), torch.full((3,), 7.0), torch.tensor([math.nan, -9.0])
    page = Page(3)
    page.put_all(0, [a, b, c])
    both, alone = merge(page.read(3), torch.tensor([0, 2]).numpy())
    assert both.tolist() == pytest.approx(list(read(torch.cat([a, b]))))
    assert alone.tolist() == [2, -9.0, 81.0, 9.0, 1]


def test_sums() -> None:
    assert sums([torch.ones(3), torch.full((2, 2), 0.5)]).tolist() == [3.0, 2.0]
    assert sums([torch.tensor([1.0, math.inf]), torch.ones(2)]).tolist() == [math.inf, 2.0]


def test_norms_of_what_is_not_finite_say_so() -> None:
    tensors = [torch.tensor([1.0, math.inf]), torch.tensor([math.nan, 1.0]), torch.full((4,), 2.0)]
    assert norms(tensors).tolist() == pytest.approx([math.inf, math.nan, 4.0], nan_ok=True)
    assert math.isnan(joint_norm(tensors)[1].item())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_joint_norm_is_that_of_all_entries(scale: float) -> None:
    tensors = [torch.randn(n, generator=generator()) * scale for n in (3, 50)]
    expected = torch.linalg.vector_norm(torch.cat(tensors).double()).item()
    assert joint_norm(tensors)[1].item() == pytest.approx(expected, rel=1e-6)
    assert joint_norm([*tensors, torch.zeros(2, dtype=torch.float16)])[1].item() == pytest.approx(
        expected, rel=1e-6
    )
