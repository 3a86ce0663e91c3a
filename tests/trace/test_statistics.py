"""tensor_stats against NumPy, over formats, layouts and odd values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evenflow.flow import Stats
from evenflow.trace import statistics
from evenflow.trace.statistics import _CHUNK, tensor_stats
from tests.oracles.autograd_double import exponent_counts


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the compiled reader and on the one that is its reference."""
    if request.param == "torch":
        monkeypatch.setattr(statistics, "_compiled", lambda: None)
    else:
        assert statistics._compiled() is not None, "the development environment has numba"


FORMATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check(stats: Stats, tensor: Tensor) -> None:
    """Compare with NumPy on the same entries in float64."""
    entries = (
        tensor.detach().to_dense().double().numpy().ravel()
        if tensor.layout is not torch.strided
        else tensor.detach().double().numpy().ravel()
    )
    finite = entries[np.isfinite(entries)]
    assert stats.count == entries.size
    assert stats.nonfinite_count == entries.size - finite.size
    assert stats.zero_count == np.count_nonzero(finite == 0)
    assert stats.abs_max == (np.abs(finite).max() if finite.size else 0.0)
    scale = np.sqrt(np.mean(finite**2)) if finite.size else 0.0
    assert stats.mean == pytest.approx(finite.mean() if finite.size else 0.0, rel=1e-12, abs=1e-13 * scale)
    assert stats.mean_square == pytest.approx(scale**2, rel=1e-12)
    assert stats.exponents is not None
    counts = {stats.exponents.low + k: c for k, c in enumerate(stats.exponents.counts) if c}
    assert counts == exponent_counts(entries)


def spread(dtype: torch.dtype, size: int = 1000) -> Tensor:
    """Values over the whole range of the format, its subnormals, zeros and non-finite ones included."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.finfo(dtype)
    exponent = torch.empty(size, dtype=torch.float64).uniform_(
        np.log2(limits.tiny) - 5 if dtype is not torch.float64 else -400,
        np.log2(limits.max) if dtype is not torch.float64 else 400,
        generator=generator,
    )
    x = (torch.randn(size, generator=generator, dtype=torch.float64).sign() * 2**exponent).to(dtype)
    x[:5] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf])
    return x


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_format(dtype: torch.dtype) -> None:
    x = spread(dtype)
    if dtype is not torch.float64:
        assert ((x != 0) & (x.abs() < torch.finfo(dtype).tiny)).any(), "subnormals are part of the test"
    check(tensor_stats(x), x)


@pytest.mark.parametrize("size", [0, 1, _CHUNK, _CHUNK + 1, 3 * _CHUNK + 17])
def test_every_size(size: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    check(tensor_stats(x), x)


def test_layouts() -> None:
    x = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(2))
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 2, 2], [1, 0, 0]]), torch.tensor([1.0, 2.0, 3.0]), (3, 4), check_invariants=True
    )
    for view in (
        x.transpose(0, 2),
        x.contiguous(memory_format=torch.channels_last),
        x[:, 1:3],
        x[..., ::2],
        x[..., :1],  # one axis with steps of three between entries
        x[0, 0, 0, 0],
        x[:, :1].expand(6, 9, 5, 3),
        torch.tensor(2.0).expand(3, 4),
        sparse,
    ):
        check(tensor_stats(view), view)


def test_complex_entries_count_as_pairs() -> None:
    x = torch.randn(7, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    assert tensor_stats(x) == tensor_stats(torch.view_as_real(x))


def test_tiny_gradients_keep_their_square() -> None:
    """1e-30 squared is zero in float32."""
    assert tensor_stats(torch.full((10,), 1e-30)).rms == pytest.approx(1e-30, rel=1e-6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_merging_parts_gives_the_whole(values: list[float], cut: int) -> None:
    x = torch.tensor(values)
    parts = [tensor_stats(part) for part in (x[:cut], x[cut:])]
    merged, whole = Stats.merge_all(parts), tensor_stats(x)
    for field in ("count", "zero_count", "nonfinite_count", "abs_max", "exponents"):
        assert getattr(merged, field) == getattr(whole, field)
    assert merged.mean_square == pytest.approx(whole.mean_square, rel=1e-12)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-12 * whole.rms)
