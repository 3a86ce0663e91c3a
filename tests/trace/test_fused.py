"""The Triton kernel against the reference: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import math
import os
from types import ModuleType

import pytest
import torch
from torch import Tensor

from evenflow.trace.statistics import _read_by_torch
from evenflow.watch.moments import device_moments_by_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by whomever


@pytest.fixture
def fused() -> ModuleType:
    pytest.importorskip("triton", reason="triton is not installed; it comes with PyTorch for CUDA")
    from evenflow.trace import fused

    return fused


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(10_001, generator=generator) * 10.0 ** torch.linspace(-44, 38, 10_001)
    return [wide, torch.randn(4096, generator=generator), torch.zeros(5), torch.full((3,), 1e-42)]


def test_all_numbers_are_those_of_the_reference(fused: ModuleType) -> None:
    for x in tensors():
        known = _read_by_torch(x)
        joined, found = fused.read(x.to(DEVICE), histogram=True)
        tiny, normal = known.counts[:-254], known.counts[-254:]  # subnormal numbers share a field with zeros
        assert found.tolist() == [known.zeros + tiny.sum(), *normal, known.nonfinite]
        figures = [known.total, known.square, known.largest, known.zeros, 0]
        assert joined.tolist() == pytest.approx(figures, rel=1e-12)


def test_entries_that_are_not_finite(fused: ModuleType) -> None:
    x = torch.ones(5000)
    x[[1, 4999]] = torch.tensor([math.nan, -math.inf])
    joined, counts = fused.read(x.to(DEVICE), histogram=True)
    assert joined.tolist() == [4998, 4998, 1, 0, 2]
    assert counts[127].item() == 4998
    assert counts[255].item() == 2
    assert counts.sum().item() == 5000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_moments_on_a_device(fused: ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(9000, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    reader = fused.reader_for(x.device, device_moments_by_torch)
    assert reader is not device_moments_by_torch
    assert reader(x).tolist() == pytest.approx(device_moments_by_torch(x).tolist(), rel=1e-5)


def test_a_kernel_that_is_wrong_or_fails_is_not_used(
    fused: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x: Tensor) -> Tensor:
        return device_moments_by_torch(x) + 1

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    x = torch.ones(3, device=DEVICE)
    assert fused._agree(device_moments_by_torch, device_moments_by_torch, x)
    assert not fused._agree(wrong, device_moments_by_torch, x)
    assert not fused._agree(broken, device_moments_by_torch, x)
