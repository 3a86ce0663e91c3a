"""Residual streams against real nets: the mean over random nets is the formula."""

from __future__ import annotations

import math
import statistics
from typing import Literal, TypeAlias

import pytest
import torch
from torch import Tensor

from evenflow.theory import TheoryError, moments, residual_profile
from evenflow.theory.norms import Norm

NormChoice: TypeAlias = Norm | Literal["none"]

WIDTH, BATCH, BLOCKS, NETS = 256, 64, 6, 6


def _real(
    phi: str, alpha: float, norm: NormChoice, sigma_w: float, sigma_b: float, seed: int
) -> tuple[list[float], list[float]]:
    """Mean square of the stream and of its gradient, place by place, in float64 autograd."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    act = getattr(torch, phi)
    stream = [draw(BATCH, WIDTH).requires_grad_()]
    for _ in range(BLOCKS):
        w1, w2 = (sigma_w * WIDTH**-0.5 * draw(WIDTH, WIDTH) for _ in range(2))
        b1, b2 = (sigma_b * draw(WIDTH) for _ in range(2))
        h = stream[-1] @ w1 + b1
        if norm == "layer_norm":
            h = (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True, correction=0)
        elif norm == "rms_norm":
            h = h / h.square().mean(1, keepdim=True).sqrt()
        elif norm == "batch_norm":
            h = (h - h.mean(0)) / h.std(0, correction=0)
        stream.append(stream[-1] + alpha * (act(h) @ w2 + b2))
        stream[-1].retain_grad()
    stream[-1].backward(draw(BATCH, WIDTH))
    squares = [x.detach().square().mean().item() for x in stream]
    return squares, [x.grad.square().mean().item() for x in stream if x.grad is not None]


@pytest.mark.parametrize("norm", ["none", "layer_norm", "rms_norm", "batch_norm"])
@pytest.mark.parametrize(("phi", "alpha"), [("relu", 1.0), ("tanh", 0.5)])
def test_a_real_net_agrees(phi: str, alpha: float, norm: NormChoice) -> None:
    sigma_w, sigma_b = 1.2, 0.4
    real = [_real(phi, alpha, norm, sigma_w, sigma_b, seed) for seed in range(NETS)]
    q = [statistics.fmean(values) for values in zip(*(squares for squares, _ in real), strict=True)]
    g = [statistics.fmean(values) for values in zip(*(slopes for _, slopes in real), strict=True)]
    theory = residual_profile(
        phi, blocks=BLOCKS, sigma_w2=sigma_w**2, sigma_b2=sigma_b**2, alpha=alpha, norm=norm
    )
    # Six nets of width 256 scatter by about √(2 · 6/256)/√6 = .09 in the log; BatchNorm of 64 samples adds
    # 1/64 per block.
    assert theory.q == pytest.approx(q, rel=0.1)
    expected = [10 ** (2 * level) for level in theory.log10_gradient_norm]
    assert expected == pytest.approx([value / g[-1] for value in g], rel=0.15)
    assert expected[0] > 1.2  # what is compared differs from doing nothing


def test_closed_forms() -> None:
    he = residual_profile("relu", blocks=10, sigma_w2=2.0)
    assert he.log10_gradient_norm[0] == pytest.approx(5 * math.log10(3))
    assert residual_profile("tanh", blocks=7, sigma_w2=2.0, alpha=0).log10_gradient_norm == (0.0,) * 8
    layer = residual_profile("relu", blocks=30, sigma_w2=2.0, norm="layer_norm")
    assert layer.q[-1] == pytest.approx(31.0)  # each branch adds σ_w² E φ² = 1
    assert layer.log10_gradient_norm[0] == pytest.approx(0.5 * math.log10(31.0))  # Π (1 + 1/q) telescopes
    batch = residual_profile("relu", blocks=1, sigma_w2=2.0, norm="batch_norm")
    assert 10 ** (2 * batch.log10_gradient_norm[0]) == pytest.approx(
        1 + 2 * moments("relu").derivative_mean_square
    )


def test_mistakes_are_named() -> None:
    with pytest.raises(TheoryError, match="at least 1 block, got blocks = 0"):
        residual_profile("relu", blocks=0, sigma_w2=1.0)
    with pytest.raises(TheoryError, match="norm is 'none'"):
        residual_profile("relu", blocks=1, sigma_w2=1.0, norm="instance")  # type: ignore[arg-type]
    with pytest.raises(TheoryError, match="sigma_w2 above 0"):
        residual_profile("relu", blocks=1, sigma_w2=0.0, norm="layer_norm")
