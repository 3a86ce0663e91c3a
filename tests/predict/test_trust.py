"""Each reason to abstain: a net for which it holds, and one for which it nearly does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from evenflow.diagnose import diagnose
from evenflow.predict import Described, predict


def _chain(depth: int, width: int = 128, act: type[nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layer = nn.Linear(width, width)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layers += [layer, act()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return build


def _abstains(build: Callable[[], nn.Module], inputs: Tensor | Described) -> str:
    return " ".join(predict(build, inputs).metadata["abstains"])


def _gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_wide_net_on_gaussian_data_is_predicted() -> None:
    assert _abstains(_chain(5), _gaussian(16, 128)) == ""
    assert _abstains(_chain(5), Described((16, 128))) == ""


def test_narrow_layers() -> None:
    assert "The layer 0 has 24 units" in _abstains(_chain(3, 24), _gaussian(16, 24))
    assert "units" not in _abstains(_chain(3, 33), _gaussian(16, 33))


def test_nets_that_are_deep_for_their_width() -> None:
    # β = 5 L/n: 0.6 at 12 layers of 100 units, 2 at 40 of them.
    assert "Nets drawn alike differ widely" in _abstains(_chain(40, 100), _gaussian(4, 100))
    assert _abstains(_chain(12, 100), _gaussian(4, 100)) == ""


@pytest.mark.parametrize(("batch", "said"), [(4, True), (8, False)])
def test_a_small_batch_under_batch_norm(batch: int, said: bool) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64))

    assert ("1 normalises over a batch of" in _abstains(build, _gaussian(batch, 64))) is said


def test_inputs_that_are_nothing_like_gaussian() -> None:
    one_hot = nn.functional.one_hot(torch.arange(16), 64).float()  # E x⁴/(E x²)² = 64
    assert "sparse or heavy-tailed" in _abstains(_chain(3, 64), one_hot)
    pixels = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))  # 9/5
    assert _abstains(_chain(3, 64), pixels) == ""


def test_tied_weights_are_told_but_predicted() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 64), nn.Linear(64, 64, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.embedding(x))
            return y

    flow = predict(Tied, torch.arange(32)[None])
    assert flow.metadata["abstains"] == []
    assert any("embedding.weight is used again as head.weight" in note for note in flow.notes)


def test_no_rule_judges_what_abstains() -> None:
    diagnosis = diagnose(predict(_chain(3, 24), _gaussian(16, 24)))
    assert diagnosis.findings == ()
    assert all("the prediction abstains" in skipped.reason for skipped in diagnosis.skipped)
    assert diagnosis.skipped
