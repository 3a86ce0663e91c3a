"""EF604: single losses far above those before, and what moved first."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from evenflow.diagnose import Severity
from evenflow.watch import watch
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import classify, clusters, found, net, only

RULE = "EF604"
HEAD = Output("2", shape=(64, 10))
NOISE = np.random.default_rng(0).lognormal(0.0, 0.2, 400)


def test_a_spike_is_noted_with_its_step() -> None:
    made = run(
        200, Weight("0.weight", gradient=lambda s: 10.0 if s == 149 else 0.01), HEAD,
        loss=lambda s: math.exp(-s / 90) * NOISE[s] * (30.0 if s == 150 else 1.0),
    )  # fmt: skip
    finding = only(made, RULE)
    assert finding.severity is Severity.NOTE
    assert finding.message == "The loss has 1 spike, the highest at step 150."
    assert finding.evidence[1].text == "What moved first: the gradient of 0.weight, at step 149."


def test_spikes_without_progress_are_an_alarm() -> None:
    made = run(
        300,
        Weight("0.weight"),
        HEAD,
        loss=lambda s: (1.0 + s / 300) * NOISE[s] * (20.0 if s % 60 == 50 else 1.0),
    )
    assert only(made, RULE).severity is Severity.WARNING


def test_noise_and_a_new_level_of_noise_are_no_spikes() -> None:
    assert found(run(400, Weight("0.weight"), HEAD, loss=lambda s: float(NOISE[s])), RULE) == []
    assert found(classify(lambda p: torch.optim.Adam(p, 1e-3)), RULE) == []


def test_one_bad_batch_in_a_real_training() -> None:
    x, y = clusters(spread=2.0)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with watch(model, optimizer, budget=None) as watcher:
        for step in range(100):
            rows = torch.randint(0, len(x), (64,))
            loss = F.cross_entropy(model(x[rows] * (30.0 if step == 70 else 1.0)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.log(loss=loss)
    finding = only(watcher.run, RULE)
    assert "the highest at step 70" in finding.message
    first = next(e for e in finding.evidence if e.text.startswith("What moved first"))
    assert first.value == 70.0
