"""Cases: training programs of the corpus, each with what is wrong with it.

``cases.json`` holds facts about programs from public benchmarks, issue threads,
papers, tutorials and textbooks: layers, initialisers, loss, optimizer, data with an
offline substitute, the symptoms and causes that were published, and which of these
symptoms were confirmed when the program was trained here without any tool.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.diagnosis import data
from benchmarks.diagnosis.data import Dataset, UnbuildableError
from benchmarks.diagnosis.losses import SUPERVISED, discriminator_loss, generator_loss, one_hot_like
from benchmarks.diagnosis.network import Context, build_network, flat
from benchmarks.diagnosis.recipe import held_out
from benchmarks.diagnosis.subject import Subject
from torch import Tensor, nn

from evenflow import Program

_SYMPTOMS = {"dead_relu": "dead_units", "nan": "non_finite"}
"""The corpus' word → evenflow's."""

_CAUSES = {
    "too_deep_plain": ("depth_without_skip",),
    "bad_init_small": ("init_too_small",),
    "bad_init_large": ("init_too_large",),
    "lr_too_high": ("learning_rate_too_high",),
    "lr_too_low": ("learning_rate_too_low",),
    "wrong_loss_activation": ("wrong_loss_or_output",),
    "unscaled_input": ("unscaled_input", "unscaled_target"),
    "long_sequence_plain_rnn": ("long_recurrence", "recurrent_gain_too_large"),
}
"""The corpus' word → the words of evenflow that mean it; others are the same in both."""

Batch = tuple[Tensor, Tensor]


def records() -> list[dict[str, Any]]:
    """What ``cases.json`` holds.

    Seed and length are those with which a fault was reproduced. ``tb-wlm-rnnrelu-lr20-noclip`` ends
    with NaN here from seed 0 in 290 steps, in the corpus from seed 1 in 207, which is sound here.
    """
    text = (Path(__file__).parent / "cases.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


def cases() -> list[Subject]:
    """All programs of the corpus."""
    return [as_subject(record) for record in records()]


def as_subject(record: dict[str, Any]) -> Subject:
    """A record as a subject of the benchmarks."""

    def symptoms(words: list[str]) -> tuple[str, ...]:
        return tuple(_SYMPTOMS.get(word, word) for word in words)

    case = Case(record)
    return Subject(
        name=record["id"],
        kind=record["kind"],
        origin="corpus",
        split="held out" if held_out(record["id"]) else "open",
        program=case.program,
        symptoms=symptoms(record["symptoms"]),
        confirmed=symptoms(record["confirmed"]),
        causes=tuple(word for cause in record["causes"] for word in _CAUSES.get(cause, (cause,))),
        seeds=(record["seed"],),
    )


@dataclass(frozen=True)
class Case:
    """One record of ``cases.json``."""

    record: dict[str, Any] = field(repr=False)

    def program(self) -> Program:
        """The program as data; nothing is trained yet.

        Raises:
            UnbuildableError: It asks for something that has no rule here.
        """
        record = self.record
        layers = flat(record["layers"])
        adversarial = record["kind"] == "gan"
        ends = [spec for spec in layers if spec["type"] in ("Linear", "GraphConv", "Conv2d")]
        per_step = not any(spec["type"] in ("TakeLastStep", "TakeClsToken") for spec in layers)
        dataset = data.make(
            record["data"],
            1 if adversarial else ends[-1]["out"],
            per_step=per_step and not adversarial,
        )
        make = self._adversarial if adversarial else self._supervised
        return make(layers, dataset)

    def _supervised(self, layers: list[dict[str, Any]], dataset: Dataset) -> Program:
        record = self.record
        loss = SUPERVISED[record["loss"]["name"]]
        clip, clip_value = (record["optimizer"].get(key) for key in ("grad_clip", "grad_clip_value"))

        def build(seed: int) -> nn.Module:
            context = Context(bool(record.get("causal")), dataset.adjacency)
            return build_network(layers, context)

        def clipped(model: nn.Module) -> None:
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if clip_value:
                nn.utils.clip_grad_value_(model.parameters(), clip_value)

        return Program(
            build=build,
            optimizer=lambda model: self._optimizer(record["optimizer"], model),
            batches=lambda seed: self._batches(dataset, seed),
            loss=lambda model, batch: loss(model(batch[0]), batch[1], record["loss"]),
            steps=record["steps"],
            before_step=clipped if clip or clip_value else None,
            metric=lambda model: quality(model, dataset, whole=record["batch_size"] == 0),
            name=record["id"],
        )

    def _adversarial(self, layers: list[dict[str, Any]], dataset: Dataset) -> Program:
        record, spec = self.record, self.record["loss"]
        nets = {
            role: [layer for layer in layers if layer["net"] == tag]
            for role, tag in (("generator", "G"), ("discriminator", "D"))
        }
        first = nets["generator"][0]
        noise = (first["in"],) if first["type"] == "Linear" else (first["shape"][0],)
        critic = spec["name"].startswith("wgan")

        def build(seed: int) -> dict[str, nn.Module]:
            return {role: build_network(one, Context()) for role, one in nets.items()}

        def optimizers(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
            return {
                role: self._optimizer(record["optimizer"][tag], models[role])
                for role, tag in (("generator", "G"), ("discriminator", "D"))
            }

        def d_loss(models: dict[str, nn.Module], batch: Batch) -> Tensor:
            fake = models["generator"](torch.randn(len(batch[0]), *noise)).detach()
            return discriminator_loss(spec, models["discriminator"], batch[0], fake)

        def g_loss(models: dict[str, nn.Module], batch: Batch) -> Tensor:
            fake = models["generator"](torch.randn(len(batch[0]), *noise))
            return generator_loss(spec, models["discriminator"], fake)

        def step(
            models: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], batch: Batch
        ) -> dict[str, Tensor]:
            figures = {}
            for role, loss, turns in (
                ("discriminator", d_loss, 5 if critic else 1),
                ("generator", g_loss, 1),
            ):
                for _ in range(turns):
                    optimizers[role].zero_grad()
                    value = loss(models, batch)
                    value.backward()
                    optimizers[role].step()
                    figures[f"loss/{role}"] = value.detach()
                    if role == "discriminator" and "clip" in spec:
                        with torch.no_grad():
                            for p in models[role].parameters():
                                p.clamp_(-spec["clip"], spec["clip"])
            return figures

        return Program(
            build=build,
            optimizer=optimizers,
            batches=lambda seed: self._batches(dataset, seed),
            loss={"discriminator": d_loss, "generator": g_loss},
            steps=record["steps"],
            step=step if critic else None,  # one turn each is the usual step, which a patch can change
            name=record["id"],
        )

    def _batches(self, dataset: Dataset, seed: int) -> list[Batch]:
        """One round through the data, shuffled; the incomplete last batch is left out."""
        size = self.record["batch_size"]
        if size == 0:
            return [(dataset.x, dataset.y)]
        size = min(size, len(dataset))
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1000 + seed))
        starts = range(0, len(order) - size + 1, size)
        return [(dataset.x[pick], dataset.y[pick]) for pick in (order[i : i + size] for i in starts)]

    def _optimizer(self, spec: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer with the constants of the framework that the program came from."""
        name, lr, decay = spec["name"], spec["lr"], spec.get("weight_decay", 0.0)
        keras = self.record["keras"]
        params: Any = list(model.parameters())
        if "head parameters only" in spec.get("note", ""):
            params = [p for p in params if p.requires_grad]
        if isinstance(decay, str):
            params, decay = self._kernel_decay(decay, params), 0.0
        eps: Any = {"eps": 1e-7} if keras else {}
        betas: Any = {"betas": tuple(spec["betas"])} if "betas" in spec else {}
        if name == "SGD":
            nesterov = spec.get("nesterov", False)
            return torch.optim.SGD(
                params, lr, spec.get("momentum", 0.0), weight_decay=decay, nesterov=nesterov
            )
        if name in ("Adam", "AdamW"):
            kind = torch.optim.Adam if name == "Adam" else torch.optim.AdamW
            return kind(params, lr, weight_decay=decay, **betas, **eps)
        if name == "RMSprop":
            return torch.optim.RMSprop(params, lr, spec.get("alpha", 0.9 if keras else 0.99), **eps)
        if name == "Adadelta":
            return torch.optim.Adadelta(params, lr, rho=0.95 if keras else 0.9, **eps)
        if name == "LBFGS":
            return torch.optim.LBFGS(params, lr)
        raise UnbuildableError(f"unknown optimizer {name!r}")

    def _kernel_decay(self, text: str, params: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Keras' kernel_regularizer l2(c) adds c |w|², a decay of 2c, on kernels only."""
        match = re.fullmatch(r"L2 ([\de.-]+) \(MNIST\) / ([\de.-]+) \(CIFAR\) in the kernels", text)
        if match is None:
            raise UnbuildableError(f"unknown weight decay {text!r}")
        strength = float(match.group(2 if self.record["data"]["input_shape"][0] == 3 else 1))
        return [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": 2 * strength},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]


def quality(model: nn.Module, dataset: Dataset, *, whole: bool = False, limit: int = 512) -> float:
    """Accuracy, or R² for numbers, in evaluation mode on up to ``limit`` of the program's own samples."""
    count = len(dataset) if whole else min(limit, len(dataset))
    x, y = dataset.x[:count], dataset.y[:count]
    was = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        out = model(x) if whole else torch.cat([model(part) for part in x.split(64)])
    model.train(was)
    if not torch.isfinite(out).all():
        return -1.0
    if dataset.task == "labels":
        guess = out.squeeze(-1).round().long() if out.shape[-1] == 1 else out.argmax(-1)
        keep = y != -100
        return (guess == y)[keep].float().mean().item()
    if dataset.task == "bits":
        return ((out > 0.5) == (y > 0.5)).float().mean().item()
    target = one_hot_like(out, y)
    error, spread = ((out - target) ** 2).mean().item(), ((target - target.mean(0)) ** 2).mean().item()
    return 1 - error / spread
