"""Outputs that are too large before any step, as suspects of EF601."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, diagnose
from evenflow.measure import measure
from tests.diagnose.training import clusters, curve, net, squared, train


class Block(nn.Module):
    """A branch without a normalisation, as large as the stream: He's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)
        nn.init.normal_(self.fc.weight, std=(2.0 / 64.0) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.fc(x))


def suspects(
    model: nn.Module, data: tuple[Tensor, Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[CauseName, str]:
    """Cause → evidence of a training whose steps are too small to get anywhere."""
    x, y = data
    first = {"": measure(model, x, lambda output: loss(output, y))}
    made = train(model, torch.optim.SGD(model.parameters(), 1e-9), data, loss, batch=0, steps=60)
    (finding,) = diagnose(made, select="EF601", first=first).findings
    return {cause.name: cause.evidence for cause in finding.causes}


def with_head(factor: float, outputs: int) -> nn.Module:
    model = net(inputs=8 if outputs == 1 else 16, outputs=outputs)
    head = model[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.mul_(factor)
    return model


def test_an_output_far_larger_than_the_targets() -> None:
    found = suspects(with_head(100.0, 1), curve(), squared)
    assert found[CauseName.INIT_TOO_LARGE].startswith("Before any step the output had an RMS of ")
    assert CauseName.INIT_TOO_LARGE not in suspects(with_head(1.0, 1), curve(), squared)
    assert CauseName.INIT_TOO_LARGE not in suspects(with_head(1.0, 1), curve(offset=9.0), squared)


def test_logits_far_larger_than_those_of_a_guess() -> None:
    found = suspects(with_head(100.0, 4), clusters(), F.cross_entropy)
    assert "and guessing costs 1.4." in found[CauseName.INIT_TOO_LARGE]
    assert CauseName.INIT_TOO_LARGE not in suspects(with_head(1.0, 4), clusters(), F.cross_entropy)


def test_a_residual_stream_that_grew_is_blamed_for_them() -> None:
    model = nn.Sequential(nn.Linear(16, 64), *[Block() for _ in range(14)], nn.Linear(64, 4))
    found = suspects(model, clusters(), F.cross_entropy)
    assert CauseName.INIT_TOO_LARGE not in found
    assert {CauseName.RESIDUAL_GROWTH, CauseName.MISSING_NORMALIZATION} <= set(found)
    assert "The residual stream grows by a factor of " in found[CauseName.RESIDUAL_GROWTH]


def test_large_inputs_are_named_instead() -> None:
    x, y = clusters()
    found = suspects(net(), (100.0 * x, y), F.cross_entropy)
    assert CauseName.UNSCALED_INPUT in found
    assert CauseName.INIT_TOO_LARGE not in found
