"""Spread, entropy and twins against sums over pairs and rows, written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Flow, Role, Row, Status
from evenflow.measure import measure
from evenflow.trace import variety
from evenflow.trace.variety import sample_spread, token_spread, twin_fraction


def spread(vectors: Tensor) -> float:
    """1 − mean ⟨x_a, x_b⟩ / mean ‖x_a‖² over the rows of ``vectors`` [members, units]."""
    pairs = [float(a @ b) for a, b in itertools.combinations(vectors.double(), 2)]
    return 1.0 - (sum(pairs) / len(pairs)) / float(vectors.double().square().sum(1).mean())


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the compiled sums and on those that are their reference."""
    if request.param == "torch":
        monkeypatch.setattr(variety, "_compiled", lambda: None)
    else:
        assert variety._compiled() is not None, "the development environment has numba"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e3])
def test_sample_spread_is_one_less_the_mean_product_of_pairs(
    offset: float, generator: torch.Generator
) -> None:
    x = torch.randn(7, 4, 3, generator=generator) + offset
    assert sample_spread(x) == pytest.approx(spread(x.flatten(1)), rel=1e-6, abs=1e-12)


def test_spread_of_independent_samples_is_one_and_of_equal_ones_zero(generator: torch.Generator) -> None:
    x = torch.randn(64, 1000, generator=generator)
    assert sample_spread(x) == pytest.approx(1.0, abs=0.01)
    assert sample_spread(x[:1].expand(8, -1)) == pytest.approx(0.0, abs=1e-12)
    assert sample_spread(1e-30 * x) == pytest.approx(1.0, abs=0.01)


def test_token_spread_compares_tokens_of_one_sample(generator: torch.Generator) -> None:
    x = torch.randn(5, 6, 8, generator=generator) + 0.5
    found = token_spread(x)
    total = sum(
        sum(float(a @ b) for a, b in itertools.combinations(sample.double(), 2)) / math.comb(6, 2)
        for sample in x
    )
    square = sum(float(sample.double().square().sum(1).mean()) for sample in x)
    assert found == pytest.approx(1.0 - total / square, rel=1e-6)


def test_spread_of_a_view_is_that_of_its_copy(generator: torch.Generator) -> None:
    x = torch.randn(8, 5, 12, generator=generator)
    for view in (x.permute(1, 2, 0), x[:, 1:4, ::3], x[:, :1].expand(-1, 3, -1), x.flip(0)[1:]):
        assert token_spread(view) == pytest.approx(token_spread(view.double().clone()), rel=1e-9, abs=1e-12)
    assert token_spread(x[..., :0]) is None


def test_a_large_tensor_is_read_in_part(generator: torch.Generator) -> None:
    x = torch.randn(8, 400_000, generator=generator)
    assert sample_spread(x) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "x", [torch.ones(1, 4), torch.zeros(3, 4), torch.ones(3), torch.full((3, 4), math.nan)]
)
def test_there_is_no_spread_of(x: Tensor) -> None:
    assert sample_spread(x) is None


def test_token_spread_is_for_three_axes() -> None:
    assert token_spread(torch.randn(3, 4)) is None
    assert token_spread(torch.randn(3, 1, 4)) is None


@pytest.mark.parametrize(
    ("rows", "twins"),
    [
        ([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [3.0, 3.0]], 0.5),
        ([[1.0, 2.0], [1.0, 2.0 + 1e-7], [2.0, 1.0], [2.0, 1.0]], 1.0),
        ([[1.0, 2.0], [1.0, 2.001], [2.0, 1.0], [2.0, 2.0]], 0.0),
        ([[0.0, 0.0], [0.0, 0.0], [2.0, 1.0], [2.0, 2.0]], 0.0),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_twins_are_equal_rows_that_are_not_zero(rows: list[list[float]], twins: float) -> None:
    assert twin_fraction(torch.tensor(rows)) == twins


def test_random_rows_have_no_twins(generator: torch.Generator) -> None:
    assert twin_fraction(torch.randn(2000, 3, 3, 3, generator=generator)) == 0.0


class Attention(nn.Module):
    """Attention of given queries and keys, fused or not."""

    def __init__(self, mask: Tensor | None, *, fused: bool, causal: bool = False) -> None:
        super().__init__()
        self.mask, self.fused, self.causal = mask, fused, causal

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, k, self.mask, is_causal=self.causal)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        mask = torch.ones(q.shape[-2], k.shape[-2]).tril().bool() if self.causal else self.mask
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        return scores.softmax(-1) @ k


def entropy(scores: Tensor) -> float:
    """Row by row, keys of −∞ left out."""
    shares = []
    for row in scores.flatten(0, -2).double():
        seen = row.detach()[row > -1e3]
        if len(seen) > 1:
            p = torch.softmax(seen, 0)
            shares.append(-float((p * p.log()).sum()) / math.log(len(seen)))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_entropy_of_attention(kind: str, fused: bool, scale: float, generator: torch.Generator) -> None:
    q, k = (scale * torch.randn(2, 3, 9, 16, generator=generator).requires_grad_() for _ in range(2))
    hidden = torch.rand(9, 9, generator=generator) < 0.3
    hidden.fill_diagonal_(fill_value=False)
    mask = {"bool": ~hidden, "float": torch.zeros(9, 9).masked_fill(hidden, -1e4)}.get(kind)
    scores = q @ k.mT / 4.0
    if kind == "causal":
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf)
    elif mask is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    flow = measure(Attention(mask, fused=fused, causal=kind == "causal"), (q.detach().requires_grad_(), k))
    (row,) = [row for row in flow.select(Role.ACTIVATION) if row.entropy is not None]
    assert row.entropy == pytest.approx(entropy(scores), rel=1e-5)


def zipf(samples: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels that come as 1, 1/2, 1/3 …, and these frequencies."""
    shares = 1.0 / torch.arange(1.0, classes + 1.0, dtype=torch.float64)
    shares /= shares.sum()
    return torch.multinomial(shares, samples, replacement=True, generator=generator), shares


def entropy_of_classes(output: Tensor, target: Tensor, **more: Any) -> float | None:
    model = nn.Linear(output.shape[-1], output.shape[-1])
    flow = measure(model, output, lambda y: F.cross_entropy(y, target, **more))
    return next(row.entropy for row in flow.select(Role.ACTIVATION) if row.site.op == "nll_loss_forward")


def test_entropy_of_classes_is_that_of_their_source(generator: torch.Generator) -> None:
    """Against what they were drawn from: 300 classes, of which a batch of 700 does not show all."""
    target, shares = zipf(700, 300, generator)
    truth = -float((shares * shares.log()).sum()) / math.log(300)
    assert len(target.unique()) < 250
    found = entropy_of_classes(torch.randn(700, 300, generator=generator), target)
    assert found == pytest.approx(truth, rel=0.05)


def test_what_a_loss_ignores_is_no_class_and_too_few_labels_tell_nothing(generator: torch.Generator) -> None:
    output, even = torch.randn(64, 4, generator=generator), torch.arange(64) % 4
    whole = entropy_of_classes(output, even)
    assert whole == pytest.approx(1.0, abs=1e-6)
    half = torch.where(torch.arange(64) < 32, even, -100)
    assert entropy_of_classes(output, half) == pytest.approx(1.0, abs=1e-3)
    assert entropy_of_classes(output, torch.zeros(64, dtype=torch.long)) is None, "one class alone"
    assert entropy_of_classes(output, (torch.arange(64) == 5).long()) is None, "one of a class"
    assert entropy_of_classes(output, even, weight=torch.ones(4)) is None
    assert entropy_of_classes(output, even, reduction="sum") is None
    rare, _ = zipf(64, 3000, generator)
    assert entropy_of_classes(torch.randn(64, 3000, generator=generator), rare) is None


def rows_of(flow: Flow, role: Role) -> list[Row]:
    return list(flow.select(role))


def test_what_is_read_from_outside_has_rows_of_its_own() -> None:
    x, target = torch.full((4, 3), 200.0), torch.full((4, 2), 7.0)
    flow = measure(nn.Linear(3, 2), x, lambda output: F.mse_loss(output, target))
    inputs, targets = rows_of(flow, Role.DATA)
    assert (inputs.site.op, inputs.shape, inputs.stats.rms) == ("addmm", (4, 3), 200.0)  # type: ignore[union-attr]
    assert (targets.site.label, targets.stats.mean) == ("<loss>:mse_loss", 7.0)  # type: ignore[union-attr]
    assert inputs.status is Status.OK


def test_links_go_through_cuts_and_gradients_do_not() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(2 * self.a(x).detach())

    flow = measure(Cut(), torch.randn(4, 3))
    assert [row.inputs for row in flow.select(Role.ACTIVATION)] == [(), (0,)]
    assert [row.inputs for row in flow.select(Role.ACTIVATION_GRADIENT)] == [()]
    assert flow.status()["a.weight"] is Status.DETACHED


def test_the_columns_come_back_from_arrow_and_older_tables_lack_them() -> None:
    flow = measure(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(4, 3))
    table = flow.to_arrow()
    assert Flow.from_arrow(table, "measured").rows == flow.rows
    old = table.drop_columns(["sample_spread", "token_spread", "entropy", "twin_fraction"])
    assert all(row.sample_spread is None for row in Flow.from_arrow(old, "measured"))
