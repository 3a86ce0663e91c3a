"""Causes by intervention, on networks with one cause put in: it is confirmed, and decoys are refuted."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.diagnose import Cause, CauseName, Diagnosis, Finding, Severity, Symptom, Verdict
from evenflow.intervene import FirstBatch, OneBatch, confirm
from evenflow.intervene.removal import REMOVE
from evenflow.lab.networks.deep import DeepNet, ResidualNet
from evenflow.lab.networks.recurrent import RecurrentNet
from evenflow.measure import measure


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@dataclass
class Plant:
    """A network with one cause put into it.

    Attributes:
        build: The network.
        inputs: Its batch.
        rule: The finding's rule.
        cause: What was put in.
        others: Causes that were not, and that can be tested there.
    """

    build: Callable[[], nn.Module]
    inputs: Tensor
    rule: str
    cause: CauseName
    others: tuple[CauseName, ...] = ()


X = features(32, 48)


def scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(factor)
    return model


def net(act: Any, init: Any, depth: int = 10) -> DeepNet:
    return DeepNet(inputs=48, width=48, depth=depth, outputs=8, act=act, init=init)


def chain(depth: int = 60) -> nn.Module:
    """Linear layers and tanh in one Sequential, each a little too small."""
    layers = [one for _ in range(depth) for one in (nn.Linear(48, 48), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(48, 8))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=0.85)
            nn.init.zeros_(layer.bias)
    return model


def dead() -> nn.Module:
    model = net("relu", "he", 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("layers.1") and name.endswith("bias"):
                parameter.fill_(-50.0)
    return model


def zeroed() -> nn.Module:
    return scaled(net("relu", "he", 4), 0.0)


def growing() -> nn.Module:
    return ResidualNet(inputs=48, width=48, blocks=40, outputs=8, init="he")


PLANTS = {
    "sigmoids": Plant(
        lambda: net("sigmoid", "glorot", 20),
        X,
        "EF101",
        CauseName.SATURATING_ACTIVATION,
        (CauseName.UNSCALED_INPUT,),
    ),
    "small": Plant(
        lambda: scaled(net("relu", "he"), 0.1),
        X,
        "EF101",
        CauseName.INIT_TOO_SMALL,
        (CauseName.DEAD_RELU, CauseName.UNSCALED_INPUT),
    ),
    "small, by its weights": Plant(
        lambda: scaled(net("relu", "he"), 0.1), X, "EF301", CauseName.INIT_TOO_SMALL, (CauseName.DEAD_RELU,)
    ),
    "large": Plant(
        lambda: scaled(net("relu", "he"), 10.0),
        X,
        "EF102",
        CauseName.INIT_TOO_LARGE,
        (CauseName.UNSCALED_INPUT,),
    ),
    "saturated by its weights": Plant(
        lambda: scaled(net("tanh", "glorot", 4), 10.0),
        X,
        "EF201",
        CauseName.INIT_TOO_LARGE,
        (CauseName.UNSCALED_INPUT,),
    ),
    "saturated by its inputs": Plant(
        lambda: net("tanh", "glorot", 2), 100.0 * X, "EF201", CauseName.UNSCALED_INPUT
    ),
    "dead": Plant(dead, X, "EF101", CauseName.DEAD_RELU, (CauseName.UNSCALED_INPUT,)),
    "zero": Plant(zeroed, X, "EF101", CauseName.ZERO_INIT_SYMMETRY, (CauseName.UNSCALED_INPUT,)),
    "plain depth": Plant(chain, X, "EF101", CauseName.DEPTH_WITHOUT_SKIP, (CauseName.UNSCALED_INPUT,)),
    "a long sequence": Plant(
        lambda: RecurrentNet(cell="rnn", inputs=4, hidden=24, outputs=3),
        features(8, 60, 4),
        "EF103",
        CauseName.LONG_RECURRENCE,
        (CauseName.UNSCALED_INPUT,),
    ),
}


def squared(output: Tensor) -> Tensor:
    return F.mse_loss(output, torch.ones_like(output))


def judged(plant: Plant, *decoys: CauseName, seconds: float = 60.0) -> Diagnosis:
    """The diagnosis with decoys ahead of the causes that it names, tested."""
    torch.manual_seed(0)
    model = plant.build()
    flow = measure(model, plant.inputs, squared)
    found = ef.diagnose(flow, select=plant.rule)
    (finding,) = found.findings
    causes = (*(Cause(name, 0.99, "put there to mislead") for name in decoys), *finding.causes)
    tampered = Diagnosis((replace(finding, causes=causes, severity=Severity.WARNING),))
    return confirm(tampered, OneBatch(model, plant.inputs, squared, 0, flow), seconds=seconds)


@pytest.mark.parametrize("name", PLANTS)
def test_what_was_put_in_is_confirmed_and_decoys_are_refuted(name: str) -> None:
    plant = PLANTS[name]
    (finding,) = judged(plant, *plant.others).findings
    verdicts = {cause.name: cause.confirmed for cause in finding.causes}
    told = [(str(cause.name), cause.trial and cause.trial.outcome) for cause in finding.causes]
    assert verdicts[plant.cause] is True, told
    assert [verdicts[other] for other in plant.others] == [False] * len(plant.others), told
    assert finding.causes[0].confirmed, told
    order = [True, None, False]
    assert [*verdicts.values()] == sorted(verdicts.values(), key=order.index), told


def test_the_number_is_told() -> None:
    (finding,) = judged(PLANTS["sigmoids"]).findings
    trial = finding.causes[0].trial
    assert trial is not None
    assert trial.before is not None
    assert trial.after is not None
    assert trial.before < -9.0 < -3.0 < trial.after < 3.0
    assert trial.outcome == (
        f"With ReLU instead of sigmoid the gradient changes by 10^{trial.after:.1f} from the last layer to "
        f"the first rather than by 10^{trial.before:.1f}."
    )


def test_remedies_are_those_of_causes_that_remain() -> None:
    torch.manual_seed(0)
    model = PLANTS["small"].build()
    flow = measure(model, X, squared)
    (finding,) = ef.diagnose(flow, select="EF101").findings
    from evenflow.diagnose.glossary import remedies

    causes = (Cause(CauseName.DEAD_RELU, 0.9, "a decoy"), *finding.causes)
    tampered = replace(finding, causes=causes, remedies=remedies(causes))
    (after,) = confirm(Diagnosis((tampered,)), OneBatch(model, X, squared, 0, flow)).findings
    assert after.remedies == remedies(finding.causes)
    assert after.remedies != tampered.remedies


def test_what_helps_always_proves_nothing_beside_a_better_suspect() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(12) for one in (nn.Linear(48, 48), nn.Sigmoid())]
    report = ef.check(nn.Sequential(*layers, nn.Linear(48, 8)), X, squared, select="EF101")
    causes = {cause.name: cause for cause in report.findings[0].causes}
    depth = causes[CauseName.DEPTH_WITHOUT_SKIP]
    assert causes[CauseName.SATURATING_ACTIVATION].confirmed
    assert depth.confirmed is None
    assert depth.trial is not None
    assert depth.trial.verdict is Verdict.INCONCLUSIVE
    assert depth.trial.outcome.endswith("But that helps whatever the layers do.")


# ------------------------------------------------------------------------- what is left open


def test_a_cause_that_nothing_removes_is_told_as_not_tested() -> None:
    plant = PLANTS["small"]
    (finding,) = judged(plant, CauseName.NORMALIZATION_EXPLOSION).findings
    trial = next(one.trial for one in finding.causes if one.name is CauseName.NORMALIZATION_EXPLOSION)
    assert CauseName.NORMALIZATION_EXPLOSION not in REMOVE
    assert trial is not None
    assert (trial.verdict, trial.outcome) == (Verdict.UNTESTED, "Not tested: nothing removes it in a copy.")


def test_a_change_that_does_not_fit_is_told() -> None:
    (finding,) = judged(PLANTS["small"], CauseName.SATURATING_ACTIVATION).findings
    trial = next(one.trial for one in finding.causes if one.name is CauseName.SATURATING_ACTIVATION)
    assert trial is not None
    assert trial.verdict is Verdict.UNTESTED
    assert "no squashing activation" in trial.outcome


def test_a_change_that_leaves_the_cause_there_tests_nothing() -> None:
    """Skips around the linear maps of a net that keeps its activations in modules of its own."""
    (finding,) = judged(PLANTS["sigmoids"], CauseName.DEPTH_WITHOUT_SKIP).findings
    trials = [one.trial for one in finding.causes if one.name is CauseName.DEPTH_WITHOUT_SKIP]
    assert all(trial is not None and trial.verdict is Verdict.UNTESTED for trial in trials)
    assert all(trial is not None and "leaves it where it is" in trial.outcome for trial in trials)


def test_no_test_begins_when_the_time_is_over() -> None:
    (finding,) = judged(PLANTS["small"], seconds=-1.0).findings
    assert {cause.trial.verdict for cause in finding.causes if cause.trial} == {Verdict.UNTESTED}
    assert "were over" in (finding.causes[0].trial.outcome if finding.causes[0].trial else "")


def test_no_test_begins_that_would_last_longer_than_there_is_time() -> None:
    model = scaled(net("relu", "he"), 0.1)
    flow = measure(model, X, squared)
    said = confirm(ef.diagnose(flow), OneBatch(model, X, squared, 0, flow), seconds=5.0, batch_seconds=60.0)
    trials = [cause.trial for cause in said.causes if cause.trial]
    assert trials
    assert {trial.verdict for trial in trials} == {Verdict.UNTESTED}
    assert all("one batch takes 60 s, and 5 s are left of the 5 s" in trial.outcome for trial in trials)


class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo: object) -> Uncopied:
        raise RuntimeError("one of a kind")


def test_a_model_that_cannot_be_copied_keeps_its_diagnosis() -> None:
    torch.manual_seed(0)
    model = Uncopied(*scaled(net("relu", "he"), 0.1).children())
    report = ef.check(model, X, squared)
    assert not report.healthy
    trials = [cause.trial for cause in report.diagnosis.causes]
    assert all(trial is not None and trial.verdict is Verdict.UNTESTED for trial in trials)
    assert any(trial is not None and "one of a kind" in trial.outcome for trial in trials)


def test_only_alarms_are_tested() -> None:
    cause = Cause(CauseName.INIT_TOO_SMALL, 1.0, "")
    note = Finding("EF101", Symptom.VANISHING_GRADIENT, Severity.NOTE, "0", "", causes=(cause,))
    model = net("relu", "he")
    tested = confirm(Diagnosis((note,)), OneBatch(model, X, squared, 0, measure(model, X, squared)))
    assert tested == Diagnosis((note,))


# --------------------------------------------------------------------------- no harm


class Hooked(nn.Module):
    """Writes in place, draws numbers, counts its batches, and has a hook that changes its output."""

    def __init__(self) -> None:
        super().__init__()
        layers = [one for _ in range(10) for one in (nn.Linear(48, 48), nn.ReLU(inplace=True))]
        self.body = scaled(nn.Sequential(nn.BatchNorm1d(48), *layers, nn.Dropout(0.5)), 0.2)
        self.head = nn.Linear(48, 8)
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor
        self.head.register_forward_hook(lambda module, args, output: output.mul_(2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        y: Tensor = self.head(self.body(x).add_(0.5 * torch.rand(())))
        return y


def test_model_random_states_and_batch_stay_as_they_were_to_the_bit() -> None:
    torch.manual_seed(0)
    model, batch = Hooked(), X.clone()
    squared(model(batch)).backward()
    state, gradients = (
        copy.deepcopy(model.state_dict()),
        [p.grad.clone() for p in model.parameters() if p.grad is not None],
    )
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    drawn = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    report = ef.check(model, batch, squared)
    assert any(cause.confirmed for cause in report.diagnosis.causes), report.findings
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip(model.parameters(), gradients, strict=True)
        if p.grad is not None
    )
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert str(np.random.get_state()) == drawn[2]  # noqa: NPY002
    assert torch.equal(batch, X)
    assert model.training


def test_testing_can_be_left_out_and_changes_no_finding() -> None:
    torch.manual_seed(0)
    model = net("sigmoid", "glorot", 20)
    plain, tested = (ef.check(model, X, squared, confirm=given) for given in (False, True))
    assert all(cause.trial is None for finding in plain.findings for cause in finding.causes)
    assert [(one.code, one.site, one.evidence) for one in plain.findings] == [
        (one.code, one.site, one.evidence) for one in tested.findings
    ]
    assert any(cause.trial is not None for finding in tested.findings for cause in finding.causes)


# ------------------------------------------------------------------------ in training

TARGETS = X[:, :4] * 0.5 + X[:, 4:8]


def program(lr: float, **settings: Any) -> ef.Program:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 4))

    given: dict[str, Any] = {
        "build": build,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr),
        "batches": lambda seed: [(X, TARGETS)],
        "loss": lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        "steps": 60,
    }
    return ef.Program(**(given | settings))


def in_training(ill: ef.Program, *causes: CauseName, code: str = "EF601") -> dict[CauseName, Cause]:
    """The causes of a finding that only training shows, tested."""
    from evenflow.measure.first import first_flows

    named = tuple(Cause(cause, 0.5, "") for cause in causes)
    finding = Finding(code, Symptom.LOSS_NOT_DECREASING, Severity.ERROR, "loss", "", causes=named)
    state = torch.get_rng_state()
    (told,) = confirm(Diagnosis((finding,)), FirstBatch(ill, 0, first_flows(ill)), seconds=30.0).findings
    assert torch.equal(torch.get_rng_state(), state)
    return {cause.name: cause for cause in told.causes}


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-5)


@pytest.mark.parametrize(
    ("ill", "cause", "decoy"),
    [
        (lambda: program(8.0), CauseName.LEARNING_RATE_TOO_HIGH, CauseName.LEARNING_RATE_TOO_LOW),
        (lambda: program(1e-4), CauseName.LEARNING_RATE_TOO_LOW, CauseName.LEARNING_RATE_TOO_HIGH),
        (
            lambda: program(0.1, before_step=clip),
            CauseName.CLIPPING_ALWAYS_ACTIVE,
            CauseName.LEARNING_RATE_TOO_HIGH,
        ),
        (
            lambda: program(0.1, batches=lambda seed: [(3000.0 * X + 5000.0, TARGETS)]),
            CauseName.UNSCALED_INPUT,
            CauseName.LEARNING_RATE_TOO_LOW,
        ),
    ],
    ids=["lr too high", "lr too low", "clipping", "inputs"],
)
def test_causes_that_training_shows(
    ill: Callable[[], ef.Program], cause: CauseName, decoy: CauseName
) -> None:
    tested = in_training(ill(), decoy, cause)
    assert tested[cause].confirmed, tested
    assert not tested[decoy].confirmed, tested
    assert next(iter(tested)) is cause


def test_a_feature_that_outweighs_the_others_is_standardised_by_itself() -> None:
    """Standardised with it, all others would be nothing beside it."""
    units = torch.ones(48)
    units[0] = 1e5
    ill = program(0.1, batches=lambda seed: [(units * (X + 100.0), TARGETS)])
    trial = in_training(ill, CauseName.UNSCALED_INPUT)[CauseName.UNSCALED_INPUT].trial
    assert trial is not None
    assert trial.verdict is Verdict.CONFIRMED, trial
    assert trial.outcome.startswith("With inputs standardised feature by feature the loss is ")


def test_a_softmax_too_many_is_tested_by_training_without_it() -> None:
    def softmaxed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 4), nn.Softmax(-1))

    ill = program(
        0.5,
        build=softmaxed,
        batches=lambda seed: [(X, TARGETS.argmax(-1))],
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    )
    tested = in_training(ill, CauseName.WRONG_LOSS_OR_OUTPUT, code="EF502")[CauseName.WRONG_LOSS_OR_OUTPUT]
    assert tested.confirmed, tested
    assert tested.trial is not None
    assert tested.trial.outcome.startswith("With the loss on logits the loss is ")


def test_roles_are_not_trained_against_each_other() -> None:
    ill = program(
        0.1,
        build=lambda seed: {"a": nn.Linear(48, 4), "b": nn.Linear(48, 4)},
        optimizer=lambda models: {
            role: torch.optim.SGD(one.parameters(), 0.1) for role, one in models.items()
        },
        loss={
            role: lambda models, batch, role=role: F.mse_loss(models[role](batch[0]), batch[1])
            for role in "ab"
        },
    )
    tested = in_training(ill, CauseName.LEARNING_RATE_TOO_HIGH)[CauseName.LEARNING_RATE_TOO_HIGH]
    assert tested.trial is not None
    assert "several roles" in tested.trial.outcome
