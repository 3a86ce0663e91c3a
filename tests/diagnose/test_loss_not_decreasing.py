"""EF601: a loss that stays, on made-up runs with known answers and on real trainings."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenflow.diagnose import CauseName, Severity, diagnose
from evenflow.measure import measure
from tests.diagnose.runs import Output, Weight, run
from tests.diagnose.training import Optimizer, alarms, classify, clusters, curve, net, only, squared, train

RULE = "EF601"
NOISE = np.random.default_rng(0).normal(0.0, 1.0, 4000)
HEAD = Output("2", shape=(64, 10))


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_a_flat_loss_is_found_whatever_its_noise(noise: float) -> None:
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.3 + noise * NOISE[s])
    assert only(made, RULE).severity is Severity.WARNING


@pytest.mark.parametrize(
    ("level", "noise"),
    [
        (2.3 * np.exp(-np.arange(200) / 60), 0.0),
        (2.3 - 0.3 * np.arange(200) / 200, 0.02),
        (2.3 - 0.3 * np.arange(200) / 200, 0.5),  # may be flat, may be not
        (1.0 + 1.3 * np.exp(-np.arange(200) / 5), 0.1),  # at its noise floor since step 20
    ],
)
def test_a_loss_that_falls_is_not(level: npt.NDArray[np.float64], noise: float) -> None:
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: level[s] + noise * NOISE[s])
    assert alarms(made, RULE) == []


def test_a_loss_that_comes_down_to_guessing_and_no_further() -> None:
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: math.log(10) + 5.0 * math.exp(-s / 4))
    assert "which is what guessing costs (ln C = 2.3)" in only(made, RULE).message
    early = run(40, Weight("2.weight"), HEAD, loss=lambda s: math.log(10) + 5.0 * math.exp(-s / 2))
    assert only(early, RULE).severity is Severity.WARNING, "it need not last for long"
    other = run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.0 + 5.0 * math.exp(-s / 4))
    assert alarms(other, RULE) == []


def test_tiny_steps_are_named_and_ordinary_ones_are_not() -> None:
    tiny = run(200, Weight("2.weight", gradient=1e-3, update=1e-8), HEAD, loss=lambda s: 2.3)
    assert [cause.name for cause in only(tiny, RULE).causes] == [CauseName.LEARNING_RATE_TOO_LOW]
    usual = run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.3)
    assert [cause.name for cause in only(usual, RULE).causes] == [CauseName.UNKNOWN]


@pytest.mark.parametrize(
    ("ratio", "cause"),
    [(6e-4, CauseName.LEARNING_RATE_TOO_LOW), (0.03, CauseName.LEARNING_RATE_TOO_HIGH)],
)
def test_an_unusual_step_is_a_weak_suspect(ratio: float, cause: CauseName) -> None:
    made = run(200, Weight("2.weight", gradient=1.0, update=0.1 * ratio), HEAD, loss=lambda s: 2.3)
    unknown, weak = only(made, RULE).causes
    assert (unknown.name, weak.name, weak.confidence) == (CauseName.UNKNOWN, cause, 0.3)


def test_polyaks_ratio_names_steps_that_overshoot() -> None:
    figures = {"lr": lambda s: 1.0, "gradient_norm_after_clipping": lambda s: 5.0}
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.3, scalars=figures)
    (cause,) = only(made, RULE).causes
    assert cause.name is CauseName.LEARNING_RATE_TOO_HIGH
    assert "by 11 times its whole value" in cause.evidence, "1 · 5² / 2.3"
    figures["lr"] = lambda s: 0.1
    made = run(200, Weight("2.weight"), HEAD, loss=lambda s: 2.3, scalars=figures)
    assert only(made, RULE).causes[0].name is CauseName.UNKNOWN


def test_a_short_run_is_not_judged_and_one_without_a_loss_is_skipped() -> None:
    assert alarms(run(45, Weight("2.weight"), HEAD, loss=lambda s: 2.3), RULE) == []
    (skip,) = diagnose(run(45, Weight("2.weight")), select=RULE).skipped
    assert skip.reason == "the run has no loss: log it with run.log(loss=...)"


@pytest.mark.parametrize(
    ("optimizer", "layers", "cause"),
    [
        (lambda p: torch.optim.Adam(p, 0.3), 6, CauseName.LEARNING_RATE_TOO_HIGH),
        (lambda p: torch.optim.SGD(p, 1e-5), 3, CauseName.LEARNING_RATE_TOO_LOW),
        (lambda p: torch.optim.Adam(p, 1e-7), 3, CauseName.LEARNING_RATE_TOO_LOW),
    ],
)
def test_real_trainings_that_stand_still(optimizer: Optimizer, layers: int, cause: CauseName) -> None:
    finding = only(classify(optimizer, model=net(layers=layers)), RULE)
    assert finding.causes[0].name is cause


def test_inputs_of_30_are_named_before_the_step_size() -> None:
    x, y = clusters()
    model = net()
    finding = only(train(model, torch.optim.SGD(model.parameters(), 0.1), (30.0 * x, y)), RULE)
    assert finding.causes[0].name is CauseName.UNSCALED_INPUT


HEALTHY: dict[str, tuple[Optimizer, dict[str, object]]] = {
    "lr 3 with sigmoids (Nielsen)": (
        lambda p: torch.optim.SGD(p, 3.0),
        {"model": lambda: net(nn.Sigmoid, 2), "steps": 300, "batch": 10},
    ),
    "SGD with lr 20, clipped": (
        lambda p: torch.optim.SGD(p, 20.0),
        {"model": lambda: net(nn.Tanh, 2), "clip": 0.25},
    ),
    "Adadelta with lr 1": (lambda p: torch.optim.Adadelta(p, 1.0), {}),
    "one sample a batch": (lambda p: torch.optim.SGD(p, 0.01), {"batch": 1, "steps": 400}),
    "warm-up from nothing": (
        lambda p: torch.optim.Adam(p, 3e-3),
        {"schedule": lambda s: min(1.0, s / 60)},
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_rule_over_runs_alarms_about_recipes_that_work(name: str) -> None:
    optimizer, more = HEALTHY[name]
    model = more.pop("model")() if "model" in more else None  # type: ignore[operator]
    made = classify(optimizer, model=model, **more)
    assert diagnose(made, select=("EF6", "EF7")).alarms == ()


def test_a_head_of_zeros_is_healthy() -> None:
    model = net()
    nn.init.zeros_(model.get_parameter("4.weight"))
    nn.init.zeros_(model.get_parameter("4.bias"))
    made = classify(lambda p: torch.optim.Adam(p, 1e-3), model=model)
    assert diagnose(made, select=("EF6", "EF7")).alarms == ()


@pytest.mark.parametrize(
    ("optimizer", "head_only"),
    [
        (lambda p: torch.optim.AdamW(p, 2e-5), False),
        (lambda p: torch.optim.SGD(p, 1e-4), False),
        (lambda p: torch.optim.Adam(p, 1e-3), True),
    ],
)
def test_fine_tuning_is_healthy(optimizer: Optimizer, head_only: bool) -> None:
    data, model = clusters(spread=1.5), net()
    first = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        first.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        first.step()
    moved = model[-1].parameters() if head_only else model.parameters()
    made = train(model, optimizer(moved), data, steps=100)
    assert diagnose(made, select=("EF6", "EF7")).alarms == ()


def test_sparse_rows_of_an_embedding_are_healthy() -> None:
    words = torch.randint(0, 500, (512, 6))
    model = nn.Sequential(nn.Embedding(500, 16), nn.Flatten(), nn.Linear(96, 2))
    data = (words, (words.float().mean(1) > 250).long())
    made = train(model, torch.optim.Adam(model.parameters(), 3e-3), data, steps=200)
    assert diagnose(made, select=("EF6", "EF7")).alarms == ()


def test_a_regression_at_its_noise_floor_is_healthy() -> None:
    x, y = curve()
    model = net(inputs=8, outputs=1)
    data = (x, y + torch.randn(len(y)))
    made = train(model, torch.optim.Adam(model.parameters(), 1e-3), data, squared, steps=200)
    assert diagnose(made, select=("EF6", "EF7")).alarms == ()


def test_steps_that_overshoot_keep_the_loss_above_what_frequencies_cost() -> None:
    output, target = torch.randn(256, 10), torch.arange(256) // 200  # 200 of one class, 56 of another
    first = {"": measure(nn.Linear(10, 10), output, lambda y: nn.functional.cross_entropy(y, target))}
    cost = -sum(n / 256 * math.log(n / 256) for n in (200, 56))

    def stuck(end: float, leap: float = 12.0, falls: float = 0.0) -> list[str]:
        made = run(
            200,
            Weight("2.weight", update=5e-3),
            HEAD,
            loss=lambda s: leap if s == 1 else end + max(2.3 - end, 0) * math.exp(-s / 5) - falls * s / 200,
        )
        return [one.message for one in diagnose(made, select=RULE, first=first).alarms]

    assert len(stuck(1.3 * cost)) == 1
    assert f"costs no more ({cost:.2g} in the first batch)" in stuck(1.3 * cost)[0]
    assert stuck(0.8 * cost) == [], "it knows more than frequencies"
    assert stuck(1.3 * cost, leap=2.3) == [], "every language model is there at first"
    assert stuck(1.9 * cost, falls=0.5 * cost) == [], "it still falls"


def test_a_loss_that_steps_throw_about_need_not_be_flat() -> None:
    def thrown(first: float, end: float) -> bool:
        made = run(
            80,
            Weight("2.weight", update=5e-3),
            HEAD,
            loss=lambda s: first if s == 1 else 2.36 + (end - 2.36) * s / 80 + 0.02 * NOISE[s],
        )
        return bool(alarms(made, RULE))

    assert thrown(12.0, 2.05)
    assert not thrown(2.4, 2.05), "slow, and nothing shows that steps are too large"
    assert not thrown(12.0, 1.5), "it gets on in spite of its leap"


def _overwritten(
    end: float = 1.6, early: float = 0.02, first: float = 0.1, last: float = 0.4, steps: int = 200
) -> list[CauseName]:
    """A loss from 2.3, large steps at first, and a weight of 32 x 32 entries that grows: √32 · RMS."""
    made = run(
        steps,
        Weight(
            "2.weight",
            weight=lambda s: first + (last - first) * s / steps,
            update=lambda s: early if s < 5 else 2e-3,
        ),
        HEAD,
        loss=lambda s: end + (2.3 - end) * math.exp(-s / 30) + 0.02 * NOISE[s],
    )
    return [cause.name for finding in alarms(made, RULE) for cause in finding.causes]


def test_steps_that_overwrite_the_weights_leave_a_loss_that_does_not_halve() -> None:
    assert _overwritten() == [CauseName.LEARNING_RATE_TOO_HIGH]
    assert _overwritten(end=1.0) == [], "it halves"
    assert _overwritten(early=0.009) == [], "no step was a tenth of the weights"
    assert _overwritten(last=0.29) == [], "a gain of 1.6, as tanh has it"
    assert _overwritten(first=0.02, early=0.004, last=0.07) == [], "small weights that grow to their size"
    assert _overwritten(first=0.25, early=0.05) == [], "they were that large at first"
    assert _overwritten(steps=45) == [], "too short to tell"


@pytest.mark.parametrize(("rate", "alarmed"), [(0.1, True), (0.01, False)])
def test_adam_at_a_rate_that_overwrites_the_weights(rate: float, alarmed: bool) -> None:
    def deep() -> nn.Module:
        return net(nn.Tanh, layers=5)

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, rate)

    torch.manual_seed(0)
    model = deep()
    made = train(model, adam(model.parameters()), clusters(512, spread=2.5), steps=120)
    assert [finding.causes[0].name for finding in alarms(made, RULE)] == (
        [CauseName.LEARNING_RATE_TOO_HIGH] if alarmed else []
    )


@pytest.mark.parametrize(("explained", "stuck"), [(0.01, True), (0.3, False)])
def test_a_squared_error_that_hardly_beats_the_mean_of_its_targets(explained: float, stuck: bool) -> None:
    x, noise = torch.randn(4096, 4), torch.randn(4096, 1)
    target = 3.0 + explained**0.5 * x[:, :1] + (1.0 - explained) ** 0.5 * noise
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.zero_()
    first = measure(model, x, lambda output: F.mse_loss(output, target))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    made = train(model, optimizer, (x, target), F.mse_loss, batch=0)
    assert bool(diagnose(made, select=(RULE,), first={"": first}).alarms) == stuck


class TwoTasks(nn.Module):
    """Two heads, side by side in one output; the second may end in a rectifier."""

    def __init__(self, rectified: bool = False) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 1), nn.Linear(32, 1)
        self.rectified = rectified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.trunk(x))
        return torch.cat([self.a(h), self.b(h).relu() if self.rectified else self.b(h)], 1)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
def test_a_head_that_no_loss_asks_for(left_out: bool, rectified: bool) -> None:
    x = torch.randn(256, 8)
    data = (x, torch.stack([0.1 * torch.randn(256), 50.0 + torch.randn(256)], 1))
    model = TwoTasks(rectified)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        each = ((output - target) ** 2).mean(0)
        heard = each[0] if left_out else each[0] + 1e-6 * each[1]
        return heard + each[1].item()

    first = {"": measure(model, x, lambda y: loss(y, data[1]))}
    made = train(model, torch.optim.Adam(model.parameters(), 1e-4), data, loss, steps=60)
    (finding,) = diagnose(made, select=RULE, first=first).alarms
    named = {cause.name: cause.evidence for cause in finding.causes}
    assert (CauseName.FROZEN_OR_DETACHED in named) == (left_out and not rectified), "a rectifier may be dead"
    if left_out and not rectified:
        assert named[CauseName.FROZEN_OR_DETACHED].startswith("b got a gradient of exactly zero")


def test_no_rate_is_too_low_where_the_weights_get_no_gradient() -> None:
    """A network that died keeps its last bias alone, whose steps are small."""

    def named(gradient: float) -> set[CauseName]:
        weights = [Weight(f"{i}.weight", update=0.0, gradient=gradient) for i in (0, 2, 4)]
        made = run(200, *weights, HEAD, loss=lambda s: 2.3)
        return {cause.name for one in diagnose(made, select=RULE).alarms for cause in one.causes}

    assert CauseName.LEARNING_RATE_TOO_LOW in named(1e-3)
    assert CauseName.LEARNING_RATE_TOO_LOW not in named(0.0)
