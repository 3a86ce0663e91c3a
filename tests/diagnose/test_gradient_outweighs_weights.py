"""EF106: where it must fire, what it must name, and the near misses."""

from __future__ import annotations

import math

import torch
from torch import nn

from evenflow.diagnose import CauseName, Finding
from evenflow.flow import Run
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import curve, found, net, only, squared, train

RULE = "EF106"
HEAD = Output("2", shape=(64, 10))
WEIGHTS = 0.1 * 32  # the norm of one weight of 32 x 32 entries


def _run(norm: float, loss: float = 2.3, end: float = 2.3) -> list[Finding]:
    figures = {"gradient_norm_before_clipping": lambda s: norm}
    return found(
        run(60, Weight("0.weight"), HEAD, loss=lambda s: loss + (end - loss) * s / 60, scalars=figures), RULE
    )


def test_a_thousand_times_the_weights_is_the_limit_and_only_where_training_suffers() -> None:
    assert _run(1100 * WEIGHTS)
    assert _run(900 * WEIGHTS) == []
    assert _run(1100 * WEIGHTS, end=1.0) == []


def test_one_gradient_between_sampled_steps_is_seen() -> None:
    def spiked(size: float) -> list[Finding]:
        figures = {"gradient_norm_after_clipping": lambda s: size * WEIGHTS if s == 13 else 1.0}
        made = run(15, Weight("0.weight"), HEAD, loss=lambda s: 2.3, scalars=figures, every=9)
        return found(made, RULE)

    assert "step 13" in spiked(1100)[0].evidence[0].text
    assert spiked(900) == []


def test_a_loss_that_fell_and_was_thrown_back_suffers_and_one_that_recovers_does_not() -> None:
    def spiked(after: float) -> list[Finding]:
        figures = {"gradient_norm_after_clipping": lambda s: 1e5 * WEIGHTS if s == 40 else 1.0}
        made = run(
            60,
            Weight("0.weight"),
            HEAD,
            loss=lambda s: (3.0 if s < 20 else 1.0) if s <= 40 else after,
            scalars=figures,
        )
        return found(made, RULE)

    assert "higher after step 40" in spiked(1.3)[0].message
    assert spiked(1.1) == []


def test_a_short_run_that_broke_is_judged() -> None:
    figures = {"gradient_norm_before_clipping": lambda s: 1e6}
    made = run(3, Weight("0.weight"), HEAD, loss=lambda s: 2.3 if s == 0 else math.nan, scalars=figures)
    assert only(made, RULE).causes[0].name is CauseName.UNKNOWN


def test_data_in_the_thousands_are_named_and_standardised_ones_are_silent() -> None:
    def trained(scale: float) -> Run:
        model: nn.Module = net(inputs=8, outputs=1)
        x, y = curve(scale=scale)
        return train(model, torch.optim.Adam(model.parameters(), 1e-6), (scale * x, y), squared, steps=60)

    finding = only(trained(3e3), RULE)
    assert {cause.name for cause in finding.causes} >= {CauseName.UNSCALED_INPUT}
    assert found(trained(1.0), RULE) == []
