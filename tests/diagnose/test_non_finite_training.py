"""EF702: a loss that becomes NaN, and what grew before."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity
from evenflow.watch import watch
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import classify, clusters, curve, found, net, only, squared, train

RULE = "EF702"
HEAD = Output("2", shape=(64, 10))


def test_what_grew_before_it_broke_is_blamed_on_the_steps_and_what_did_not_is_not() -> None:
    grown = run(60, Weight("0.weight"), HEAD, loss=lambda s: 2.0 * 1.3**s if s < 40 else math.nan)
    finding = only(grown, RULE)
    assert finding.severity is Severity.ERROR
    assert finding.message == "The loss is no number from step 40 on."
    assert finding.causes[0].name is CauseName.LEARNING_RATE_TOO_HIGH
    sudden = run(60, Weight("0.weight"), HEAD, loss=lambda s: 2.0 if s < 40 else math.nan)
    assert only(sudden, RULE).causes[0].name is CauseName.UNKNOWN


def test_a_moment_is_noted_and_a_loss_that_never_was_is_left_to_the_first_step() -> None:
    moment = run(60, Weight("0.weight"), HEAD, loss=lambda s: math.inf if s == 30 else 2.0)
    assert only(moment, RULE).severity is Severity.NOTE
    assert found(run(60, Weight("0.weight"), HEAD, loss=lambda s: math.nan if s < 5 else 1.0), RULE) == []


def test_float16_that_came_near_its_end_is_blamed_first() -> None:
    half = Output("0", size=lambda s: 10.0 * 1.2**s, dtype="float16")
    made = run(60, half, HEAD, loss=lambda s: 2.0 if s < 50 else math.nan)
    assert only(made, RULE).causes[0].name is CauseName.PRECISION_OVERFLOW


def test_a_learning_rate_of_50_breaks_in_a_few_steps() -> None:
    made = classify(lambda p: torch.optim.SGD(p, 50.0))
    finding = only(made, RULE)
    assert finding.causes[0].name is CauseName.LEARNING_RATE_TOO_HIGH
    assert any(evidence.text.startswith("What moved first") for evidence in finding.evidence)


def test_targets_in_the_thousands_are_named_before_the_learning_rate() -> None:
    model = net(inputs=8, outputs=1)
    data = curve(scale=300.0, offset=1000.0)
    made = train(model, torch.optim.SGD(model.parameters(), 0.01), data, squared)
    names = [cause.name for cause in only(made, RULE).causes]
    assert names == [CauseName.UNSCALED_TARGET, CauseName.LEARNING_RATE_TOO_HIGH]


def test_a_nan_in_the_batch_is_not_blamed_on_the_steps() -> None:
    x, y = clusters()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with watch(model, optimizer, budget=None) as watcher:
        for step in range(50):
            loss = F.cross_entropy(model(x * (math.nan if step == 30 else 1.0)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.log(loss=loss)
    assert [cause.name for cause in only(watcher.run, RULE).causes] == [CauseName.UNKNOWN]


def test_what_breaks_at_once_is_blamed_on_steps_that_are_seen_to_be_large() -> None:
    def broken(update: float) -> CauseName:
        made = run(20, Weight("0.weight", update=update), HEAD, loss=lambda s: 2.0 if s == 0 else math.nan)
        return only(made, RULE).causes[0].name

    assert broken(0.05) is CauseName.LEARNING_RATE_TOO_HIGH
    assert broken(1e-3) is CauseName.UNKNOWN
