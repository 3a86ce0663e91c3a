"""The ratio of widely spread scores against rows simulated one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.predict.oracle import disagreement, worst
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.measure import measure
from evenflow.predict import predict
from evenflow.predict.rules.peaked import SMALL_SPREAD, _simulated, effective_ratio, log_sum, unsaturated


def simulated(n: int, full: float, rho: float, rows: int) -> tuple[float, float]:
    """Ln R and its standard error."""
    s, w = np.random.default_rng(7).standard_normal((2, rows, n))
    t = rho * s + math.sqrt(1 - rho**2) * w
    p, q = (np.exp(math.sqrt(full) * x) for x in (s, t))
    agree = (p * q).sum(1) / (p.sum(1) * q.sum(1))
    mean, error = agree.mean(), agree.std() / math.sqrt(rows)
    return math.log(mean * (n - 1) / (1 - mean)), error / mean / (1 - mean)


@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("rho", [-0.5, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("full", [0.7, 2.6, 9.0])
def test_rows_simulated_afresh(n: int, rho: float, full: float) -> None:
    expected, error = simulated(n, full, rho, 40_000)
    ours = math.sqrt(error**2 * (1 + 40_000 * n / 240_000))  # our own rows are noisy too
    found = math.log(effective_ratio(n, full, np.array([rho * full]))[0])
    assert found == pytest.approx(expected, abs=4 * ours + 2e-3)


@pytest.mark.parametrize(("n", "within"), [(16, 0.02), (512, 0.01)])
def test_the_closed_form_holds_where_it_is_used(n: int, within: float) -> None:
    below = effective_ratio(n, SMALL_SPREAD, np.array([0.3, 0.1, -0.2]))
    beyond = effective_ratio(n, SMALL_SPREAD * 1.0001, np.array([0.3, 0.1, -0.2]))
    assert below == pytest.approx(beyond, rel=within)


def test_a_grid_point_is_the_simulation_itself() -> None:
    full = SMALL_SPREAD * 4
    assert effective_ratio(32, full, np.array([full, -full])) == pytest.approx(
        np.exp([_simulated(32, 8, 0.0)[0, 0], _simulated(32, 8, math.pi / 2)[0, -1]])
    )


@pytest.mark.parametrize("n", [4, 24])
@pytest.mark.parametrize("rho", [-0.5, 0.5, 1.0])
@pytest.mark.parametrize("full", [0.1, 9.0, 100.0])
def test_what_a_saturated_softmax_lets_through(n: int, rho: float, full: float) -> None:
    """E tr(J J') with J taken from autograd's own softmax."""
    s, w = np.random.default_rng(7).standard_normal((2, 2000, n))
    rows = [torch.tensor(math.sqrt(full) * x) for x in (s, rho * s + math.sqrt(1 - rho**2) * w)]
    p, q = (x.softmax(1) for x in rows)
    jacobians = [torch.diag_embed(x) - x[:, :, None] * x[:, None] for x in (p, q)]
    trace, agree = (jacobians[0] * jacobians[1]).sum((1, 2)), (p * q).sum(1)
    expected = trace.mean() / agree.mean() / (1 - 1 / n)
    error = float(trace.std() / trace.mean() + agree.std() / agree.mean()) / math.sqrt(len(s))
    found = unsaturated(n, full, np.array([rho * full]))[0]
    assert math.log(found) == pytest.approx(math.log(expected), abs=4 * error + 0.02)


@pytest.mark.parametrize("n", [1, 10, 500])
@pytest.mark.parametrize("std", [0.3, 3.0, 16.0, 300.0])
def test_the_log_of_a_sum_of_exponentials(n: int, std: float) -> None:
    draws = std * torch.randn(4000, n, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    sums = draws.logsumexp(1)
    assert log_sum(n, std**2) == pytest.approx(sums.mean().item(), abs=4 * sums.std().item() / 4000**0.5)
    assert log_sum(n, 1e-4) == pytest.approx(math.log(n) + 5e-5 * (1 - 1 / n), abs=1e-5)


class Attention(nn.Module):
    """Scores of standard deviation ``scale``."""

    def __init__(self, scale: float, *, causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(128, 128, bias=False) for _ in range(3))
        self.out, self.scale, self.causal = nn.Linear(128, 10), scale, causal
        for layer in (self.q, self.k, self.v):
            nn.init.normal_(layer.weight, std=128**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 32)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) * (self.scale * 32**-0.5)
        if self.causal:
            scores = scores.masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -1e9)
        y: Tensor = self.out((x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1))
        return y


@pytest.mark.parametrize(("scale", "causal"), [(4.0, False), (20.0, True)])
def test_attention_to_one_key(scale: float, causal: bool) -> None:
    """Where one key takes all, queries and keys get hardly any gradient (once 2 decades off)."""
    x = torch.randn(8, 16, 128, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (8,), generator=torch.Generator().manual_seed(1))
    found = disagreement(
        lambda: Attention(scale, causal=causal),
        x,
        lambda y: F.cross_entropy(y, labels),
        draws=5,
    )
    site, excess = worst(found, sigmas=3)
    assert excess < 0.05, (site, found[site])


@pytest.mark.parametrize("std", [1.0, 30.0])
def test_logits_far_apart(std: float) -> None:
    """The loss is that of the largest logit, not the log of the mean exponential."""

    def build() -> nn.Module:
        last = nn.Linear(128, 50)
        nn.init.normal_(last.weight, std=std)
        return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), last)

    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(50, (64,), generator=torch.Generator().manual_seed(1))
    found = disagreement(build, x, lambda y: F.cross_entropy(y, labels), draws=6)
    site, excess = worst(found, sigmas=3)
    assert excess < 0.02, (site, found[site])


def test_masked_scores_are_told_with_their_mask() -> None:
    """A site full of −1e9 has that RMS, as measured (the scores under the mask are 2 or so)."""
    x = torch.randn(8, 16, 128, generator=torch.Generator().manual_seed(0))
    flows = [f(Attention(1.0, causal=True), x) for f in (predict, measure)]
    ours, real = (
        {row.site.label: row.stats.log10_rms for row in flow.select(Role.ACTIVATION) if row.stats}
        for flow in flows
    )
    assert ours[":masked_fill"] == pytest.approx(real[":masked_fill"], abs=1e-6)
    assert ours[":mul"] == pytest.approx(real[":mul"], abs=0.1)


class Normed(nn.Module):
    """An RMSNorm before logits of a given standard deviation."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 128), nn.Linear(128, 60, bias=False)
        nn.init.normal_(self.head.weight, std=std * 128**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        y: Tensor = self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return y


@pytest.mark.parametrize("std", [2.0, 10.0])
def test_far_logits_go_with_their_gradient(std: float) -> None:
    """Σ (p − 1[l]) y has a mean, which an RMSNorm before the head receives."""
    x = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(60, (96,), generator=torch.Generator().manual_seed(1))
    found = disagreement(lambda: Normed(std), x, lambda y: F.cross_entropy(y, labels), draws=6)
    for site in ("head:mm", ":mean", ":rsqrt", ":mul", "layer:addmm"):
        assert abs(found[f"activation_gradient:{site}"][0]) < 0.06, (site, found)
