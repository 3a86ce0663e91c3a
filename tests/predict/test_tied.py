"""Heads that are the embedding table: the logit of a position's own token, the loss, and its gradients."""

from __future__ import annotations

import pytest
import torch
from tests.predict.oracle import disagreement
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.predict import predict

CLASSES, WIDTH, TOKENS = 60, 128, 24
IDS = torch.randint(CLASSES, (6, TOKENS), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(CLASSES, (6, TOKENS), generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """Embedding, one residual layer, an RMSNorm, and the embedding again as the head."""

    def __init__(self, scale: float, *, tied: bool = True) -> None:
        super().__init__()
        self.table, self.layer, self.scale = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, WIDTH), scale
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        nn.init.normal_(self.head.weight)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.layer(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        y: Tensor = self.head(x * self.scale)
        return y


def every(labels: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(y.flatten(0, 1), labels.flatten())


def following(y: Tensor) -> Tensor:
    return F.cross_entropy(y[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


LOSSES = {
    "own": lambda y: every(IDS, y),
    "others": lambda y: every(OTHERS, y),
    "next": following,
    "some": lambda y: every(torch.where(OTHERS % 3 == 0, IDS, OTHERS), y),
    "ignored": lambda y: every(torch.where(OTHERS % 2 == 0, IDS, -100), y),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.03, 0.06])
def test_a_logit_that_stands_out(loss: str, scale: float) -> None:
    """Own logits of 3 and 7; taken as like the others, the loss is up to 1 and gradients .4 decades off."""
    found = disagreement(lambda: Tied(scale), IDS, LOSSES[loss], draws=6)
    assert abs(found["activation_gradient:head:mm"][0]) < 0.06, found["activation_gradient:head:mm"]
    assert abs(found["activation_gradient::mul"][0]) < 0.1, found["activation_gradient::mul"]
    assert abs(found["activation_gradient::mean"][0]) < 0.1, found["activation_gradient::mean"]
    if loss not in ("own", "ignored"):  # where it abstains
        assert abs(found["activation_gradient::add"][0]) < 0.05, found["activation_gradient::add"]


@pytest.mark.parametrize(
    ("loss", "tied", "abstains"), [("own", True, True), ("others", True, False), ("own", False, False)]
)
def test_nothing_left_to_learn(loss: str, tied: bool, abstains: bool) -> None:
    """Logits of 100 at the labels leave a gradient that no mean tells (once ten decades off)."""
    flow = predict(lambda: Tied(1.0, tied=tied), IDS, LOSSES[loss])
    assert any("stand out" in reason for reason in flow.metadata["abstains"]) == abstains


@pytest.mark.parametrize(
    ("loss", "tied", "abstains"),
    [("own", True, True), ("own", False, False), ("others", True, False), ("next", True, False)],
)
def test_gradients_along_their_activations(loss: str, tied: bool, abstains: bool) -> None:
    """The gradient before the norm is right; the layer's is nearly so, in nets with attention it is not."""
    build = lambda: Tied(0.03, tied=tied)  # noqa: E731
    flow = predict(build, IDS, LOSSES[loss])
    assert any("point along the activations" in reason for reason in flow.metadata["abstains"]) == abstains
    found = disagreement(build, IDS, LOSSES[loss], draws=4)
    assert abs(found["activation_gradient::add"][0]) < 0.05
    if tied:
        assert abs(found["parameter_gradient:layer.weight"][0]) < 0.07


@pytest.mark.parametrize("scale", [0.07, 0.08, 0.1, 0.15])
def test_no_gap_between_the_reasons(scale: float) -> None:
    """From gradients along activations to hardly any: they are .1 to .7 decades off."""
    assert predict(lambda: Tied(scale), IDS, LOSSES["own"]).metadata["abstains"]


WEIGHTS = {"table.weight", "layer.weight", "head.weight"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_positions_with_the_same_token(loss: str, scale: float) -> None:
    """They are alike in activations, and in gradients where labels or tall logits follow the token."""
    found = disagreement(lambda: Tied(scale, tied=False), IDS, LOSSES[loss], draws=4)
    gradients = {site: error for site, (error, _) in found.items() if site.partition(":")[2] in WEIGHTS}
    assert sum(site.startswith("parameter_gradient") for site in gradients) == 3
    assert max(map(abs, gradients.values())) < 0.03, gradients


@pytest.mark.parametrize("loss", ["others", "next", "some"])
@pytest.mark.parametrize("scale", [0.03, 0.1, 1.0])
def test_weights_of_a_tied_head(loss: str, scale: float) -> None:
    """Each position's gradient holds its own token's row (once .13 off)."""
    found = disagreement(lambda: Tied(scale), IDS, LOSSES[loss], draws=4)
    for name in ("table.weight", "layer.weight"):
        assert abs(found[f"parameter_gradient:{name}"][0]) < 0.07, (name, found)
