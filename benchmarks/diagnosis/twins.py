"""Faulty twins: one known fault put into a healthy control.

A twin counts only if the fault shows: its metric must stay below a bound that the
control passes. ``confirmed`` holds what follows from that bound or from a loss that
is no number; other symptoms that the fault brings may rightly be reported, and need not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.diagnosis import faults
from benchmarks.diagnosis.controls import recipes
from benchmarks.diagnosis.controls.adversarial import adversaries
from benchmarks.diagnosis.controls.dense import changed, net, residual
from benchmarks.diagnosis.controls.numbers import net as numbers_net
from benchmarks.diagnosis.controls.sequences import rnn, transformer
from benchmarks.diagnosis.recipe import Recipe, adam, adamw, cross_entropy, held_out, mapped, sgd, task
from benchmarks.diagnosis.subject import Subject
from torch import nn
from torch.nn import functional as F

from evenflow.lab.tasks import Adding

STUCK = "loss_not_decreasing"


def twin(
    recipe: Recipe,
    fault: str,
    symptoms: str,
    causes: str,
    ceiling: float,
    places: str = "",
    confirmed: str | None = None,
    **changes: Any,
) -> Subject:
    """The recipe with a fault; words are separated by spaces."""
    faulty = replace(recipe, name=f"{recipe.name}+{fault}", **changes)
    return Subject(
        name=faulty.name,
        kind=faulty.kind,
        origin="twin",
        split="held out" if held_out(faulty.name) else "open",
        program=faulty.program,
        symptoms=tuple(symptoms.split()),
        confirmed=tuple((STUCK if confirmed is None else confirmed).split()),
        causes=tuple(causes.split()),
        places=tuple(places.split()),
        seeds=(0, 1),
        ceiling=ceiling,
    )


def twins() -> list[Subject]:
    """All twins."""
    base = recipes()
    return [*_settings(base), *_parts(base), *_adversarial()]


def _settings(base: dict[str, Recipe]) -> list[Subject]:
    """Faults of rates, weights, scales and outputs."""
    relu, deep_tanh, momentum = base["relu-adam"], base["tanh-glorot-17"], base["relu-he-momentum"]
    numbers = base["regression-adam"]
    return [
        # learning rates
        twin(
            momentum,
            "rate-high",
            f"{STUCK} oscillating non_finite exploding_gradient dead_units",
            "learning_rate_too_high dead_relu",
            0.6,
            optimizer=sgd(5.0, 0.9),
        ),
        twin(
            base["transformer-pre"],
            "rate-high",
            f"{STUCK} oscillating exploding_gradient dead_units saturation",
            "learning_rate_too_high",
            0.3,
            optimizer=adam(0.3),
        ),
        twin(relu, "rate-low", STUCK, "learning_rate_too_low", 0.6, optimizer=adam(1e-7)),
        twin(base["lstm-rows"], "rate-low", STUCK, "learning_rate_too_low", 0.4, optimizer=sgd(1e-5)),
        twin(
            numbers,
            "momentum-rate",
            f"{STUCK} oscillating exploding_gradient non_finite dead_units",
            "learning_rate_too_high",
            0.5,
            optimizer=sgd(1.0, 0.99),
        ),
        # activations and inits
        twin(
            deep_tanh,
            "sigmoid",
            f"{STUCK} vanishing_gradient saturation",
            "saturating_activation depth_without_skip",
            0.3,
            build=net(17, "sigmoid", "glorot"),
        ),
        twin(
            momentum,
            "tiny-init",
            f"{STUCK} vanishing_gradient dead_units",
            "init_too_small",
            0.3,
            build=changed(net(6), faults.normal(1e-3)),
            optimizer=sgd(0.02),
        ),
        twin(
            deep_tanh,
            "large-init",
            f"{STUCK} exploding_gradient saturation oscillating",
            "init_too_large",
            0.8,
            confirmed="saturation",
            build=changed(net(17, "tanh"), faults.normal(1.0)),
        ),
        twin(
            base["relu-he-30"],
            "plain-default-init",
            f"{STUCK} vanishing_gradient dead_units",
            "init_too_small depth_without_skip missing_normalization",
            0.5,
            build=net(30),
        ),
        twin(
            relu,
            "all-zero",
            f"{STUCK} vanishing_gradient dead_units",
            "zero_init_symmetry",
            0.3,
            build=changed(net(4), faults.zero_all),
        ),
        twin(
            relu,
            "negative-bias",
            f"{STUCK} vanishing_gradient dead_units",
            "dead_relu",
            0.3,
            places="layers.1",
            confirmed=f"{STUCK} dead_units",
            build=changed(net(4), lambda m: m.get_parameter("layers.1.linear.bias").fill_(-20.0)),
        ),
        # scales
        twin(
            base["relu-sgd"],
            "pixels-256",
            f"{STUCK} exploding_gradient dead_units oscillating non_finite",
            "unscaled_input learning_rate_too_high dead_relu",
            0.6,
            data=mapped(base["relu-sgd"].data, lambda x: 256 * (x + 1)),
        ),
        twin(
            base["tanh-glorot-momentum"],
            "inputs-1000",
            f"{STUCK} saturation exploding_gradient oscillating",
            "unscaled_input saturating_activation",
            0.8,
            confirmed="saturation",
            places="layers.0",
            data=mapped(base["tanh-glorot-momentum"].data, lambda x: 1000 * x),
        ),
        twin(
            base["regression-tanh-sgd"],
            "targets-1e4",
            f"{STUCK} exploding_gradient non_finite saturation oscillating",
            "unscaled_target learning_rate_too_high",
            0.5,
            data=mapped(numbers.data, targets=lambda y: 1e4 * (y + 2)),
        ),
        # outputs and losses
        twin(
            relu,
            "double-softmax",
            STUCK,
            "wrong_loss_or_output",
            0.5,
            build=faults.followed_by(net(4), lambda: nn.Softmax(-1)),
            optimizer=sgd(0.05),
        ),
        twin(
            base["rare-class"],
            "softmax-of-one",
            f"{STUCK} vanishing_gradient",
            "wrong_loss_or_output",
            0.6,
            build=faults.followed_by(base["rare-class"].build, lambda: nn.Softmax(-1)),
            loss=F.binary_cross_entropy,
        ),
        twin(
            numbers,
            "relu-output",
            f"{STUCK} dead_units vanishing_gradient",
            "wrong_loss_or_output dead_relu",
            0.6,
            build=faults.followed_by(numbers_net(), nn.ReLU),
            data=mapped(numbers.data, targets=lambda y: y - 2),
        ),
        twin(
            numbers,
            "tanh-output",
            f"{STUCK} saturation vanishing_gradient",
            "wrong_loss_or_output unscaled_target",
            0.5,
            confirmed=f"{STUCK} saturation",
            places="1",
            build=faults.followed_by(numbers_net(), nn.Tanh),
            data=mapped(numbers.data, targets=lambda y: 10 * y + 20),
        ),
        twin(
            numbers,
            "root-of-zero",
            f"non_finite {STUCK}",
            "wrong_loss_or_output unknown",
            0.5,
            confirmed="non_finite",
            loss=faults.root,
        ),
        twin(
            relu,
            "log-of-zero",
            f"non_finite {STUCK}",
            "wrong_loss_or_output precision_overflow",
            0.5,
            confirmed="non_finite",
            loss=faults.log_of_probability,
        ),
    ]


def _parts(base: dict[str, Recipe]) -> list[Subject]:
    """Faults of single parts: what does not learn, recurrence, depth, the optimizer, number formats."""
    relu, momentum, adding = base["relu-adam"], base["relu-he-momentum"], base["lstm-adding"]
    return [
        # parts that do not learn
        twin(
            momentum,
            "encoder-detached",
            f"{STUCK} vanishing_gradient",
            "frozen_or_detached",
            0.97,
            confirmed="",
            places="layers.0 layers.1 layers.2",
            build=changed(net(6, init="he"), faults.encoder_detached),
        ),
        twin(
            momentum,
            "frozen-by-mistake",
            STUCK,
            "frozen_or_detached",
            0.97,
            confirmed="",
            places="layers.0 layers.1 layers.2 layers.3 layers.4",
            build=changed(
                net(6, init="he"),
                lambda m: [m.get_submodule(f"layers.{i}").requires_grad_(False) for i in range(5)],
            ),
        ),
        twin(
            momentum,
            "not-in-optimizer",
            STUCK,
            "frozen_or_detached",
            0.97,
            confirmed="",
            places="layers.0 layers.1 layers.2 layers.3 layers.4",
            optimizer=faults.one_half_only,
        ),
        # recurrence
        twin(
            adding,
            "forgets",
            f"{STUCK} vanishing_gradient",
            "long_recurrence saturating_activation",
            0.3,
            build=changed(rnn("lstm", inputs=2, outputs=1, hidden=32), faults.forgetful),
            clip=None,
            optimizer=sgd(0.01),
        ),
        twin(
            base["gru-adding-30"],
            "plain-100",
            f"{STUCK} vanishing_gradient",
            "long_recurrence",
            0.3,
            build=rnn("rnn", inputs=2, outputs=1, hidden=32),
            clip=None,
            optimizer=adam(1e-3),
            steps=200,
            data=task(Adding(150)),
        ),
        twin(
            base["gru-pixels-64"],
            "gain-1.5",
            f"{STUCK} exploding_gradient non_finite oscillating dead_units",
            "recurrent_gain_too_large init_too_large",
            0.3,
            build=rnn("rnn", inputs=1, hidden=32, nonlinearity="relu", recurrent_init="identity", gain=1.5),
            clip=None,
            optimizer=sgd(1e-3),
            steps=200,
        ),
        # depth and normalisation
        twin(
            base["residual-scaled-24"],
            "unscaled-60",
            f"{STUCK} exploding_gradient non_finite oscillating",
            "residual_growth missing_normalization learning_rate_too_high",
            0.6,
            build=residual(60, "plain"),
            optimizer=sgd(0.02, 0.9),
            steps=150,
        ),
        twin(
            base["batchnorm-12"],
            "plain-50",
            f"{STUCK} exploding_gradient oscillating",
            "normalization_explosion depth_without_skip",
            0.6,
            build=net(50, init="he", norm="batch", width=32),
            steps=150,
            optimizer=sgd(0.05, 0.9),
        ),
        twin(
            base["transformer-post-warmup"],
            "deep-no-warmup",
            f"{STUCK} vanishing_gradient exploding_gradient",
            "post_ln_depth learning_rate_too_high",
            0.3,
            build=transformer("post", 8),
            scheduler=None,
            optimizer=adam(5e-3),
            steps=200,
        ),
        twin(
            base["transformer-pre"],
            "attention-collapse",
            f"{STUCK} saturation vanishing_gradient exploding_gradient",
            "attention_collapse init_too_large",
            0.5,
            confirmed="saturation",
            build=changed(transformer(), faults.sharp_attention),
        ),
        # the optimizer
        twin(
            relu,
            "clipped-away",
            STUCK,
            "clipping_always_active learning_rate_too_low",
            0.6,
            clip=1e-5,
            optimizer=sgd(0.1),
        ),
        twin(
            relu,
            "huge-epsilon",
            STUCK,
            "optimizer_epsilon_dominates learning_rate_too_low",
            0.6,
            optimizer=adam(1e-3, eps=10.0),
        ),
        twin(
            relu,
            "heavy-decay",
            f"{STUCK} vanishing_gradient dead_units",
            "init_too_small unknown",
            0.3,
            optimizer=adamw(1e-2, weight_decay=50.0),
        ),
        # number formats
        twin(
            relu,
            "updates-rounded-away",
            STUCK,
            "update_lost_to_rounding learning_rate_too_low",
            0.6,
            build=lambda: net(4, init="he")().bfloat16(),
            optimizer=faults.low_precision,
            data=mapped(relu.data, lambda x: x.bfloat16()),
            loss=lambda o, y: cross_entropy(o.float(), y),
        ),
        twin(
            relu,
            "half-underflow",
            f"{STUCK} vanishing_gradient",
            "precision_underflow",
            0.6,
            build=lambda: net(4, init="he")().half(),
            optimizer=sgd(0.05),
            data=mapped(relu.data, lambda x: x.half()),
            loss=lambda o, y: cross_entropy(o.float(), y) * 1e-6,
        ),
        twin(
            relu,
            "half-overflow",
            f"non_finite {STUCK} exploding_gradient",
            "precision_overflow unscaled_input",
            0.6,
            confirmed="non_finite",
            build=lambda: net(4, init="he")().half(),
            optimizer=sgd(0.05),
            data=mapped(relu.data, lambda x: (3e4 * x).half()),
            loss=lambda o, y: cross_entropy(o.float(), y),
        ),
    ]


def _adversarial() -> list[Subject]:
    def faulty(one: Subject, symptoms: str, causes: str) -> Subject:
        return replace(
            one,
            origin="twin",
            symptoms=tuple(symptoms.split()),
            confirmed=(),
            causes=tuple(causes.split()),
            threshold=None,
            ceiling=0.2,
        )

    return [
        faulty(
            adversaries(
                "gan-saturating+strong-judge", "saturating", rates=(1e-4, 2e-2), d_turns=5, steps=300
            ),
            f"vanishing_gradient saturation {STUCK}",
            "discriminator_saturation",
        ),
        faulty(
            adversaries("gan-non-saturating+rate-high", "non_saturating", rates=(0.5, 0.5), steps=300),
            f"oscillating exploding_gradient {STUCK} saturation dead_units vanishing_gradient",
            "learning_rate_too_high",
        ),
    ]
