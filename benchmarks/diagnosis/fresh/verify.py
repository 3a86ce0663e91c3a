"""Are the programs what they are claimed to be? Each is trained bare, and compared with the frozen facts.

    python -m benchmarks.diagnosis.fresh.verify            all programs against facts.json
    python -m benchmarks.diagnosis.fresh.verify cnn rnn    those whose name or kind contains a word
    python -m benchmarks.diagnosis.fresh.verify --write    freeze what is measured now
    python -m benchmarks.diagnosis.fresh.verify --origin unseen     those of another collection

evenflow's Program only runs the loop; what is measured comes from plain hooks here:
the optimizer's pre-step hook for gradients, a function mode for activations.

A symptom counts as seen if

* ``non_finite``: a loss or a gradient is NaN or infinite;
* ``vanishing_gradient``: some weight's gradient has an RMS below 1e-3 of the largest one's, in at
  least half of the samples of the training (which is sampled at its start and ten times more); or, of
  models that play against each other, one's whole gradient ends below 1e-3 of where it started; or, of
  one that reads a series, the loss' gradient by the first step is at first below 1e-6 of that by the last;
* ``exploding_gradient``: the norm of the whole gradient passes 1e3, or an inner weight's gradient is 1e3
  times the last one's;
* ``dead_units``: half of a rectifier's units are zero for a whole batch, at the end;
* ``saturation``: half of a sigmoid's or tanh's outputs are within 1 % of their bounds, or half of a
  softmax's rows have one number above .99, at the end;
* ``loss_not_decreasing``: the loss ends (mean of its last tenth) above 90 % of where it started (its
  first value, or the mean of its first five if that is less); or it starts where that of the fixed twin
  does, within 20 %, comes less than half as far in as many steps, and the metric is worse; or, in a strict
  collection, it ends above 90 % of where that of the fixed twin starts, and falls by less than 10 % in its
  second half, and the metric is worse;
* ``oscillating``: in the second half, the loss of neighbouring windows of 5 steps differs by 30 % of its
  level or more, in the mean, and the loss ends above half of where it started.

Each limit is passed by a collection's ``margin`` or the symptom does not count: with one of 1.25 a loss
must end above 92 %, a gradient fall below 8e-4.

A faulty program is *reproduced* if its fix raises the metric by .03 or more, or a symptom that its
source tells is seen in it and not, or less, in its fixed twin; in a strict collection, if its fix raises
the metric by that much and a symptom that its source tells is seen. A healthy one must reach its threshold.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from benchmarks.diagnosis.fresh import FRESH
from benchmarks.diagnosis.fresh.entry import Collection, Entry
from benchmarks.diagnosis.unseen import UNSEEN
from torch import nn
from torch.overrides import TorchFunctionMode

from evenflow import Program
from evenflow.program import Training

COLLECTIONS = {one.origin: one for one in (FRESH, UNSEEN)}
SAMPLES = 10
HELPS = 0.03
"""Rise of the metric from which on a fix counts as one that helps."""


class Units(TorchFunctionMode):
    """Largest share of dead rectifier units and of saturated outputs in any activation that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = self.saturated = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if name in ("relu", "tanh", "sigmoid", "softmax"):
            value = result.detach().float()
            if name == "relu" and value.dim() > 1:
                if value.dim() == 4:
                    value = value.movedim(1, -1)
                zero = (value.flatten(0, -2) <= 0).all(0)
                self.dead = max(self.dead, float(zero.float().mean()))
            elif name in ("tanh", "sigmoid"):
                low, high = (-1.0, 1.0) if name == "tanh" else (0.0, 1.0)
                margin = 0.01 * (high - low)
                near = (value < low + margin) | (value > high - margin)
                self.saturated = max(self.saturated, float(near.float().mean()))
            elif name == "softmax" and value.shape[-1] > 1:
                self.saturated = max(self.saturated, float((value.amax(-1) > 0.99).float().mean()))
        return result


def measured(program: Program, seed: int) -> dict[str, Any]:
    """Train, and tell what was seen."""
    training = program.start(seed)
    every = max(1, program.steps // SAMPLES)
    norms: list[float] = []
    by_role: dict[str, list[float]] = {role: [] for role in training.models}
    ratios: list[tuple[float, float]] = []
    models = list(training.models.values())
    weights = [p for model in models for p in model.parameters() if p.dim() > 1]

    def before_step(role: str, optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in grads)))
        by_role[role].append(norms[-1])
        if (len(norms) - 1) % every == 0:
            ratios.append(_spread(weights))

    for role, optimizer in training.optimizers.items():
        optimizer.register_step_pre_hook(partial(before_step, role))
    through_time = _through_time(training)
    losses: list[float] = []
    began = time.process_time()
    for figures in training.run():
        losses.append(sum(float(value) for value in figures.values()))
        if len(losses) > 30 and not any(map(math.isfinite, losses[-30:])):
            break
    seconds = time.process_time() - began
    units = Units()
    with units, torch.random.fork_rng(devices=[]):
        for loss in training.losses.values():
            loss(training.model, training.first_batch())
    metric = program.metric(training.model) if program.metric is not None else None
    tenth = max(5, len(losses) // 10)
    finite = [one for one in losses if math.isfinite(one)] or [math.nan]
    facts = {
        "metric": metric,
        "loss": [min(losses[0], _mean(finite[:5])), _mean(finite[-tenth:])],
        "finite": all(map(math.isfinite, losses)) and all(map(math.isfinite, norms)),
        "gradient_norm": [norms[0], max((one for one in norms if math.isfinite(one)), default=math.nan)],
        "least_to_largest": sorted(one[0] for one in ratios)[len(ratios) // 2],
        "largest_to_last": sorted(one[1] for one in ratios)[len(ratios) // 2],
        "faded": min(_mean(one[-tenth:]) / max(_mean(one[:5]), 1e-300) for one in by_role.values())
        if len(by_role) > 1
        else 1.0,
        **({} if through_time is None else {"through_time": through_time}),
        "dead": units.dead,
        "saturated": units.saturated,
        "swing": _swing(losses),
        "late_fall": _late_fall(losses),
    }
    return {**{key: _rounded(value) for key, value in facts.items()}, "seconds": round(seconds, 1)}


def _through_time(training: Training) -> float | None:
    """RMS of the loss' gradient by the first step of a series [batch, steps, features], over the last's."""
    batch = training.first_batch()
    loss = training.losses.get("")
    if loss is None or not isinstance(batch, tuple) or batch[0].dim() != 3:
        return None
    x = batch[0].clone().requires_grad_()
    (by,) = torch.autograd.grad(loss(training.model, (x, *batch[1:])), x)
    levels = by.double().square().mean((0, 2)).sqrt()
    return float(levels[0] / levels[-1]) if float(levels[-1]) else None


def _spread(weights: list[nn.Parameter]) -> tuple[float, float]:
    """RMS of gradients: the smallest over the largest, the largest over the last."""
    levels = [
        float(p.grad.double().square().mean().sqrt())
        for p in weights
        if p.grad is not None and p.requires_grad
    ]
    top = max(levels, default=0.0)
    if not top or not math.isfinite(top):
        return 1.0, 1.0
    return min(levels) / top, top / levels[-1] if levels[-1] else 1.0


def _swing(losses: list[float]) -> float:
    half = losses[len(losses) // 2 :]
    windows = [_mean(half[i : i + 5]) for i in range(0, len(half) - 4, 5)]
    level = _mean([abs(one) for one in windows])
    steps = [abs(b - a) for a, b in pairwise(windows)]
    return _mean(steps) / level if level else 0.0


def _late_fall(losses: list[float]) -> float:
    """By which share of itself the loss falls in the second half."""
    half, tenth = losses[len(losses) // 2 :], max(5, len(losses) // 10)
    middle = _mean(half[:tenth])
    return (middle - _mean(half[-tenth:])) / abs(middle) if middle else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return value


def seen(facts: dict[str, Any], margin: float = 1.0) -> list[str]:
    """The symptoms, by the definitions above."""
    first, last = facts["loss"]
    top = facts["gradient_norm"][1]
    found = {
        "non_finite": not facts["finite"],
        "vanishing_gradient": facts["least_to_largest"] < 1e-3 / margin
        or facts["faded"] < 1e-3 / margin
        or facts.get("through_time", 1.0) < 1e-6 / margin,
        "exploding_gradient": top is None or max(top, facts["largest_to_last"]) > 1e3 * margin,
        "dead_units": facts["dead"] >= 0.5 * margin,
        "saturation": facts["saturated"] >= 0.5 * margin,
        "loss_not_decreasing": first is None or last is None or not last < (1 - 0.1 / margin) * first,
        "oscillating": None not in (facts["swing"], first, last)
        and facts["swing"] >= 0.3 * margin
        and last > 0.5 * first,
    }
    return [name for name, is_so in found.items() if is_so]


def verified(one: Entry, collection: Collection = FRESH) -> dict[str, Any]:
    """The facts of an entry, with ``reproduced``."""
    margin = collection.margin
    runs = [measured(one.program(), seed) for seed in one.seeds]
    facts: dict[str, Any] = {**runs[0], "symptoms": seen(runs[0], margin)}
    if one.threshold is not None:
        facts["metrics"] = [run["metric"] for run in runs]
        facts["reproduced"] = all(
            run["finite"] and run["metric"] is not None and run["metric"] >= one.threshold for run in runs
        )
        return facts
    fixed = measured(one.program(fixed=True), one.seeds[0])
    facts["fixed_metric"], facts["fixed_loss"] = fixed["metric"], fixed["loss"]
    facts["fixed_symptoms"] = seen(fixed, margin)
    gained = facts["metric"] is not None and fixed["metric"] is not None
    helps = gained and fixed["metric"] - facts["metric"] >= HELPS
    slow = helps and _slow(facts["loss"], fixed["loss"], margin)
    stands = helps and collection.strict and _stands(facts, fixed["loss"], margin)
    if (slow or stands) and "loss_not_decreasing" not in facts["symptoms"]:
        facts["symptoms"].append("loss_not_decreasing")
    told = set(one.symptoms) & set(facts["symptoms"])
    harmless = gained and fixed["metric"] < facts["metric"] - HELPS
    differs = bool(told - set(facts["fixed_symptoms"])) and not harmless
    facts["reproduced"] = (helps and bool(told)) if collection.strict else (helps or differs)
    return facts


def _slow(loss: list[float | None], fixed: list[float | None], margin: float) -> bool:
    """Whether a loss starts with that of the fixed twin, and comes less than half as far."""
    first, last, fixed_first, fixed_last = *loss, *fixed
    if first is None or last is None or fixed_first is None or fixed_last is None:
        return False
    together = abs(first - fixed_first) < 0.2 * abs(first)
    return together and first - last < 0.5 / margin * (fixed_first - fixed_last)


def _stands(facts: dict[str, Any], fixed: list[float | None], margin: float) -> bool:
    """Whether a loss stands still where that of the fixed twin starts, or above."""
    last, start, fall = facts["loss"][1], fixed[0], facts["late_fall"]
    if last is None or start is None or fall is None:
        return False
    return bool(last > (1 - 0.1 / margin) * start and fall < 0.1 / margin)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true", help="freeze what is measured")
    parser.add_argument("--origin", choices=list(COLLECTIONS), default=FRESH.origin)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    collection = COLLECTIONS[asked.origin]
    known = collection.facts
    wrong = 0
    for name, one in collection.entries.items():
        if asked.words and not any(word in name or word == one.kind for word in asked.words):
            continue
        facts = verified(one, collection)
        before = known.get(name, {})
        same = before.get("reproduced") == facts["reproduced"] and before.get("symptoms") == facts["symptoms"]
        good = facts["reproduced"] and (asked.write or same)
        wrong += not good
        told = "as frozen" if same else "new"
        metrics = f"{facts['metric']} → {facts['fixed_metric']}" if one.fix else f"{facts['metrics']}"
        mark = "ok" if good else "!!"
        print(f"{mark} {name}: {metrics}, {', '.join(facts['symptoms']) or '–'} ({told})", flush=True)
        print(f"     { {k: v for k, v in facts.items() if k not in ('symptoms', 'metrics', 'metric')} }")
        if asked.write:
            now = {**collection.read(), name: facts}  # another process may have written meanwhile
            order = {key: now[key] for key in collection.entries if key in now}
            collection.file.write_text(json.dumps(order, indent=1) + "\n", "utf-8")
    if wrong:
        raise SystemExit(f"{wrong} programs are not as they are claimed to be")


if __name__ == "__main__":
    main()
