"""Every experiment at a tiny size, the list of them, and their results as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import pytest
import torch

from evenflow.errors import EvenflowError
from evenflow.lab import Comparison, Outcome, Verdict, document, experiment, experiments, run
from evenflow.lab.experiment import Experiment, Track, silently
from evenflow.lab.measuring import draw, gaussian, log10_norms, relative
from evenflow.lab.networks import DeepNet
from evenflow.lab.picture import Axis, Curve, HeatMap, Lines, Origin, over_seeds
from evenflow.lab.registry import register
from evenflow.lab.seeds import seeded
from evenflow.lab.verdict import near

T = TypeVar("T")

TINY: dict[str, dict[str, Any]] = {
    "activations": {"width": 64, "batch": 16, "seeds": 2},
    "sigmoid-depth": {"depth": 4, "width": 32, "batch": 4, "seeds": 2},
    "exploding-init": {"depth": 4, "width": 32, "batch": 4, "seeds": 2},
    "init-depth": {"relu_depth": 3, "tanh_depth": 4, "width": 32, "batch": 4, "seeds": 2},
    "one-sample": {"depth": 3, "width": 32, "groups": 2, "nets": 3},
    "phase-diagram": {
        "width": 32,
        "map_width": 32,
        "depth": 6,
        "settle": 2,
        "batch": 4,
        "seeds": 2,
        "grid": 2,
    },
    "normalisation": {"layers": 3, "width": 32, "batch": 8, "seeds": 2},
    "trainable-depth": {"scales": (1, 4, 16), "width": 8, "steps": 2, "seeds": 2},
    "clipping": {"length": 20, "hidden": 8, "steps": 3, "seeds": 2},
    "image-depth": {"depth": 6, "channels": 4, "batch": 2, "seeds": 2},
    "discriminator-saturation": {"distances": (1.0, 2.0), "batch": 50, "seeds": 2},
    "adaptive-steps": {"depths": (2, 3), "width": 8, "batch": 4, "seeds": 2},
    "attention-entropy": {"tokens": 32, "width": 8, "scales": (0.5, 2.0, 12.0), "seeds": 2},
    "dead-units": {"steps": (1.0, 100.0), "means": (0.0, 1.0), "width": 16, "batch": 64, "seeds": 2},
    "gradient-underflow": {"depth": 6, "width": 16, "batch": 4, "seeds": 2},
    "lost-updates": {"rates": (1e-5, 1e-3), "width": 16, "batch": 4, "seeds": 2},
    "trained-discriminators": {"width": 8, "depth": 2, "steps": 20, "batch": 8, "seeds": 2},
    "transformer-depth": {"depths": (1, 2), "width": 16, "tokens": 8, "vocabulary": 8, "seeds": 2},
    "tailored-activations": {
        "depth": 20,
        "width": 16,
        "batch": 4,
        "seeds": 2,
        "steps": 2,
        "trained": 2,
    },
    "warm-up": {"blocks": 1, "width": 8, "tokens": 8, "batch": 2, "steps": 40, "seeds": 2},
    "residual": {"blocks": (2, 3), "width": 16, "batch": 4, "seeds": 2},
    "sequence-length": {"steps": 5, "hidden": 16, "batch": 2, "seeds": 2},
}
"""Settings that take no time; verdicts then mean nothing."""


MEASURED_ONLY = {"activations", "clipping", "trained-discriminators"}
"""Experiments whose expectations are single numbers, so that no expected curve is drawn."""


class _Count:
    """A track that counts."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, items: Sequence[T], /) -> Iterable[T]:
        for item in items:
            self.seen += 1
            yield item


def test_every_experiment_has_a_tiny_size() -> None:
    assert sorted(TINY) == sorted(kind.name() for kind in experiments())


@pytest.mark.parametrize("name", sorted(TINY))
def test_an_experiment_measures_compares_and_draws(name: str) -> None:
    kind, count = experiment(name), _Count()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    result = run(kind(**TINY[name]), count)
    assert torch.equal(torch.get_rng_state(), before)
    outcome = result.outcome
    assert count.seen > 0
    assert outcome.comparisons
    assert outcome.pictures
    quantities = [comparison.quantity for comparison in outcome.comparisons]
    assert len(set(quantities)) == len(quantities)
    assert all(c.expected.formula and c.expected.source for c in outcome.comparisons)
    assert all(math.isfinite(x) for c in outcome.comparisons for x in c.samples)
    assert len({picture.name for picture in outcome.pictures}) == len(outcome.pictures)
    if name not in MEASURED_ONLY:
        assert any(Origin.EXPECTED in {c.origin for c in p.curves} for p in outcome.pictures)
    again = kind(**TINY[name]).run()
    assert again.comparisons == outcome.comparisons
    record = document([result])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    (entry,) = record["experiments"]
    assert entry["name"] == name
    assert entry["verdict"] == outcome.verdict


def test_sizes() -> None:
    for kind in experiments():
        full, quick = kind.of_size(quick=False), kind.of_size(quick=True)
        assert full == kind()
        assert quick != full
        assert kind.question.endswith("?")


FAST = ("activations", "adaptive-steps", "sigmoid-depth")
"""Experiments whose quick size takes a second or two."""


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TINY)],
)
def test_the_quick_size_agrees_with_theory(name: str) -> None:
    outcome = experiment(name).of_size(quick=True).run()
    assert {c.quantity: c.verdict for c in outcome.comparisons if c.verdict is not Verdict.AGREES} == {}


def test_a_net_that_theory_does_not_mean_disagrees() -> None:
    """Meta-test: with sigmoid's theory over tanh nets, the same comparison turns red."""
    build = lambda: DeepNet(inputs=64, width=64, depth=10, act="tanh", init="glorot")  # noqa: E731
    samples = [
        relative(log10_norms(draw(build, gaussian(16, 64, seed=s), s), ".linear"))[0] for s in range(4)
    ]
    kind: Any = experiment("sigmoid-depth")
    theirs = kind(depth=10, width=64, batch=16, seeds=4).run()
    glorot = next(c for c in theirs.comparisons if c.quantity.startswith("Glorot"))
    assert glorot.verdict is not Verdict.DISAGREES
    assert Comparison("q", glorot.expected, tuple(samples)).verdict is Verdict.DISAGREES


def test_the_gradient_by_layer_is_that_of_autograd() -> None:
    build = lambda: DeepNet(inputs=8, width=8, depth=4, act="tanh")  # noqa: E731
    x = gaussian(5, 8, seed=0)
    levels = relative(log10_norms(draw(build, x, 0), ".linear"))
    with seeded(0):
        net = build().double()
    hidden: list[torch.Tensor] = []
    layer: Any
    for layer in net.layers:
        layer.linear.register_forward_hook(lambda _m, _i, out: hidden.append(out))
    out = net(x.double())
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))  # measure's own, seed 0
    gradients = torch.autograd.grad(out, hidden, cotangent.double())
    by_hand = [math.log10(float(g.norm() / gradients[-1].norm())) for g in gradients]
    assert levels == pytest.approx(by_hand, abs=1e-4)


def test_names_are_found_with_a_hint() -> None:
    assert experiment("Sigmoid_Depth").name() == "sigmoid-depth"
    with pytest.raises(EvenflowError, match=r"no experiment 'sigmoid-dept'. Did you mean 'sigmoid-depth'?"):
        experiment("sigmoid-dept")
    with pytest.raises(EvenflowError, match=r"no experiment 'zzz'. There are: activations, sigmoid-depth"):
        experiment("zzz")


def test_two_of_one_name_or_one_place_are_refused() -> None:
    found = experiments()
    assert register(reversed(found)) == found

    @final
    @dataclass(frozen=True)
    class Other(Experiment):
        place = 2
        title = question = expectation = "x"

        def run(self, track: Track = silently) -> Outcome:
            return Outcome((), ())

    with pytest.raises(TypeError, match=r"2 is taken twice: by .*sigmoid_depth.SigmoidDepth and by .*Other"):
        register([*found, Other])
    Other.place = 99
    Other.__module__ = "elsewhere.sigmoid_depth"
    with pytest.raises(TypeError, match="'sigmoid-depth' is taken twice"):
        register([*found, Other])
    del Other.place
    with pytest.raises(TypeError, match="Other is not complete: it has no place"):
        register([Other])


def test_a_curve_over_seeds_has_the_interval_as_its_band() -> None:
    curve = over_seeds("c", (1, 2), [[0.0, 5.0], [2.0, 5.0]])
    assert curve.y == (1.0, 5.0)
    assert curve.low is not None
    assert curve.high is not None
    assert curve.high[0] - 1.0 == pytest.approx(12.7062)  # t(.975, 1) · s/√2 with s = √2
    assert 1.0 - curve.low[0] == pytest.approx(12.7062)
    assert curve.low[1] == curve.high[1] == 5.0
    with pytest.raises(AssertionError, match="parts of a curve differ in length"):
        Curve("c", (1, 2), (1.0,))


def test_json_says_what_is_not_finite() -> None:
    @final
    @dataclass(frozen=True)
    class Odd(Experiment):
        place = 1
        title = question = expectation = "x"

        def run(self, track: Track = silently) -> Outcome:
            lines = Lines("l", "t", "r", Axis("x"), Axis("y"), (Curve("c", (1.0,), (None,)),))
            grid = HeatMap("m", "t", "r", Axis("x"), Axis("y"), "v", (1.0,), (1.0,), ((math.nan,),))
            compared = Comparison("q", near(0, 1, "f", "s"), (-math.inf, -math.inf))
            return Outcome((compared,), (lines, grid), ("note",))

    (entry,) = document([run(Odd())])["experiments"]
    assert entry["comparisons"][0]["samples"] == ["-inf", "-inf"]
    assert entry["comparisons"][0]["interval"] == ["-inf", "-inf"]
    assert entry["comparisons"][0]["verdict"] == "disagrees"
    assert entry["pictures"][0]["curves"][0]["y"] == [None]
    assert entry["pictures"][1]["values"] == [[None]]
    assert entry["pictures"][1]["kind"] == "HeatMap"
