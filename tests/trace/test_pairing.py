"""A loss of two arguments takes the second half of the batch, in check as in the command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.errors import LossError
from evenflow.measure import measure

MODEL = nn.Linear(4, 3)
X, Y = torch.ones(5, 4), torch.zeros(5, dtype=torch.long)


def closed(output: Tensor) -> Tensor:
    return F.cross_entropy(output, Y)


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(), lambda output, target: closed(output)]
)
def test_a_pair_is_what_closing_over_the_target_gives(loss: Callable[..., Tensor]) -> None:
    report = ef.check(MODEL, (X, Y), loss)
    expected = measure(MODEL, X, closed)
    assert report.flow.metadata["loss"] == expected.metadata["loss"]
    assert report.flow.rms("parameter_gradient") == expected.rms("parameter_gradient")


def test_a_loss_of_the_output_alone_leaves_a_pair_to_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MODEL

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a + b)

    assert ef.check(Two(), (X, X), closed).flow.metadata["loss"] > 0.0


def test_without_a_pair_it_says_what_was_expected() -> None:
    with pytest.raises(LossError) as error:
        ef.check(MODEL, X, F.cross_entropy)
    assert str(error.value) == (
        "The loss needs two arguments, (output, target), so the batch must be a pair (inputs, target); it is "
        "float32 [5, 4]. Or close over the target: lambda output: loss(output, target)."
    )
