"""Other tools on the same programs: torchmortem, torch-audit and AutoTrainer's thresholds.

Every finding that a tool shows at warning level or above is put into evenflow's
words. Causes come from the tool's own remedies, in their order: a tool that lists
generic remedies gets the benefit of all of them, and how many that are is shown
beside. Findings with no counterpart (hardware, style) count neither as hits nor as
false alarms.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from benchmarks.diagnosis.tools import Tool, Verdict

from evenflow import Program
from evenflow.program import Training

_MORTEM_SYMPTOMS: list[tuple[str, str, list[str]]] = [  # category, pattern of the title, symptoms
    ("gradient_flow", r"Vanishing|stalling", ["vanishing_gradient"]),
    ("gradient_flow", r"Exploding", ["exploding_gradient"]),
    ("dead_units", r"", ["dead_units"]),
    ("saturation", r"", ["saturation"]),
    ("loss_dynamics", r"divergence", ["exploding_gradient", "loss_not_decreasing"]),
    ("loss_dynamics", r"plateau", ["loss_not_decreasing"]),
    ("update_ratio", r"too low", ["loss_not_decreasing"]),
    ("update_ratio", r"too high", ["oscillating"]),
    ("weight_norm", r"explosion", ["exploding_gradient"]),
    ("weight_norm", r"Stagnant", ["loss_not_decreasing"]),
    ("gradient_noise", r"", ["oscillating"]),
]

_MORTEM_CAUSES: list[tuple[str, str]] = [  # pattern of a remedy, the cause that it addresses
    (r"skip|residual|depth", "depth_without_skip"),
    (r"sigmoid/tanh", "saturating_activation"),
    (r"LeakyReLU, ELU", "dead_relu"),
    (r"batch normalization|layer normalization", "missing_normalization"),
    (r"(reduce|lower|conservative) .*learning rate|lower learning rate", "learning_rate_too_high"),
    (r"increas\w+ the learning rate", "learning_rate_too_low"),
    (r"connected in the computation graph", "frozen_or_detached"),
    (r"LSTM or GRU", "long_recurrence"),
]


def _mortem_causes(category: str, title: str, remedies: Iterable[str]) -> Iterator[str]:
    for remedy in remedies:
        for pattern, cause in _MORTEM_CAUSES:
            if re.search(pattern, remedy, re.IGNORECASE):
                yield cause
        if re.search(r"initializ", remedy, re.IGNORECASE):
            large = category == "saturation" or "xploding" in title
            yield "init_too_large" if large else "init_too_small"


def torchmortem_tool(program: Program, seed: int) -> Verdict:
    """One Autopsy for each model, stepped as its documentation shows."""
    torchmortem: Any = importlib.import_module("torchmortem")
    logging.getLogger("torchmortem").setLevel(logging.CRITICAL)
    training = program.start(seed)
    watchers = {
        role: torchmortem.Autopsy(model, optimizer=training.optimizers[role])
        for role, model in training.models.items()
    }
    for one in watchers.values():
        one._atexit_registered = True  # no crash report when the benchmark ends
        one.attach()
    for figures in _until_unsound(training):
        for role, one in watchers.items():
            one.step(loss=float(figures[f"loss/{role}" if role else "loss"]))
    symptoms: list[str] = []
    causes: list[str] = []
    for one in watchers.values():
        one.detach()
        report = one.get_report()
        for finding in sorted(report.findings if report else [], key=lambda f: -f.severity):
            if finding.severity < torchmortem.Severity.WARNING:
                continue
            for category, pattern, meant in _MORTEM_SYMPTOMS:
                if finding.category == category and re.search(pattern, finding.title):
                    symptoms += meant
                    causes += _mortem_causes(category, finding.title, finding.remediation)
    return _verdict(symptoms, causes)


_AUDIT_RULES: dict[str, tuple[list[str], list[str]]] = {  # rule → symptoms, causes that its remedy names
    "TA100": (["non_finite", "exploding_gradient"], ["learning_rate_too_high", "init_too_large"]),
    "TA102": (["exploding_gradient"], ["learning_rate_too_high"]),
    "TA104": (["vanishing_gradient", "loss_not_decreasing"], ["frozen_or_detached"]),
    "TA105": (["dead_units"], ["dead_relu", "init_too_small", "learning_rate_too_high"]),
    "TA301": ([], ["unscaled_input"]),
    "TA405": ([], ["zero_init_symmetry"]),
    "TA500": ([], ["frozen_or_detached"]),
}
_AUDITS = 20
"""Audits in a run; by its default, every 1000 steps, it would see almost nothing of these."""


def torch_audit_tool(program: Program, seed: int) -> Verdict:
    """Static, first-batch and run-time rules through the library's own autopatch mode."""
    core: Any = importlib.import_module("torch_audit.core")
    runtime: Any = importlib.import_module("torch_audit.runtime")
    training = program.start(seed)
    auditors = [
        runtime.autopatch(
            model,
            optimizer=training.optimizers[role],
            every_n_steps=max(1, program.steps // _AUDITS),
            suppress_internal_errors=True,
        )
        for role, model in training.models.items()
    ]
    try:
        for _ in _until_unsound(training):
            pass
    finally:
        for one in auditors:
            one.unpatch()
    found = [f for one in auditors for f in one.finish().findings if f.severity >= core.Severity.WARN]
    symptoms: list[str] = []
    causes: list[str] = []
    for finding in sorted(found, key=lambda f: -f.severity._rank()):
        meant, named = _AUDIT_RULES.get(finding.rule_id, ([], []))
        symptoms += meant
        causes += named
    return _verdict(symptoms, causes)


# --- AutoTrainer's thresholds: Zhang et al., ICSE 2021; the constants of its released code ----------

_VANISH_RATIO, _VANISH_FIRST, _EXPLODE_RATIO, _ZERO_SHARE = 1e-3, 1e-4, 70.0, 0.7  # β₁, β₂, β₃, γ
_GOOD_ACCURACY, _FLAT_ACCURACY = 0.6, 0.01  # Θ, δ
_SWING, _SWING_SHARE = 0.03, 0.2  # ζ, η
_LARGE_LOSS, _CHECKPOINTS = 1e3, 20

_AUTOTRAINER_CAUSES = {  # the order of its repairs
    "vanishing_gradient": ["saturating_activation", "missing_normalization"],
    "exploding_gradient": ["saturating_activation", "missing_normalization"],
    "non_finite": ["saturating_activation", "missing_normalization"],
    "dead_units": ["dead_relu", "missing_normalization", "init_too_small"],
    "oscillating": ["learning_rate_too_high", "init_too_large"],
    "loss_not_decreasing": ["learning_rate_too_low", "init_too_small"],
}


def autotrainer_tool(program: Program, seed: int) -> Verdict:
    """Thresholds on gradients, accuracy and loss at 20 checkpoints.

    As in the original, symptoms of gradients are told only while accuracy is poor
    or flat (R² stands in for it in regression). Programs without a metric, GANs,
    have no accuracy; there they are told unconditionally.
    """
    every = max(1, program.steps // _CHECKPOINTS)
    training = program.start(seed)
    hits: set[str] = set()
    accuracy: list[float] = []
    losses: list[float] = []
    with _gradients_checked(training, every, hits):
        for step, figures in enumerate(_until_unsound(training)):
            losses += [float(value) for value in figures.values()]
            if program.metric is not None and step % every == 0:
                with torch.random.fork_rng(devices=[]):
                    accuracy.append(max(0.0, program.metric(training.model)))
    found: list[str] = []
    if not all(map(math.isfinite, losses)) or "non_finite" in hits:
        found += ["non_finite", "exploding_gradient"]
    elif max(losses) >= _LARGE_LOSS:
        found.append("exploding_gradient")
    poor = bool(accuracy) and max(accuracy) < _GOOD_ACCURACY
    gains = [b - a for a, b in pairwise(accuracy)]
    flat = bool(accuracy) and max(gains, default=0.0) < _FLAT_ACCURACY
    if not accuracy or poor or flat:
        order = ("dead_units", "exploding_gradient", "vanishing_gradient")
        first = next((symptom for symptom in order if symptom in hits), None)
        if first is not None:
            found.append(first)
        elif poor and flat:
            found.append("loss_not_decreasing")
    if accuracy and _swings(accuracy):
        found.append("oscillating")
    return _verdict(found, [cause for symptom in found for cause in _AUTOTRAINER_CAUSES[symptom]])


@contextmanager
def _gradients_checked(training: Training, every: int, hits: set[str]) -> Iterator[None]:
    def look(role: str) -> Any:
        count = 0

        def hook(optimizer: torch.optim.Optimizer, *args: Any) -> None:
            nonlocal count
            count += 1
            if (count - 1) % every:
                return
            grads = [p.grad for p in training.models[role].parameters() if p.grad is not None]
            kernels = [float(grad.norm()) for grad in grads if grad.dim() > 1]
            if not all(bool(torch.isfinite(grad).all()) for grad in grads):
                hits.add("non_finite")
            elif kernels and kernels[-1] > 0:
                ratio = kernels[0] / kernels[-1]
                if ratio < _VANISH_RATIO and kernels[0] < _VANISH_FIRST:
                    hits.add("vanishing_gradient")
                if ratio > _EXPLODE_RATIO:
                    hits.add("exploding_gradient")
            zeros = sum(int((grad == 0).sum()) for grad in grads)
            if grads and zeros >= _ZERO_SHARE * sum(grad.numel() for grad in grads):
                hits.add("dead_units")

        return hook

    handles = [one.register_step_pre_hook(look(role)) for role, one in training.optimizers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _swings(accuracy: list[float]) -> bool:
    """Its ol_judge: enough consecutive highs and lows that lie further apart than ζ."""
    inner = range(1, len(accuracy) - 1)
    high = [accuracy[i] for i in inner if accuracy[i] >= max(accuracy[i - 1], accuracy[i + 1])]
    low = [accuracy[i] for i in inner if accuracy[i] <= min(accuracy[i - 1], accuracy[i + 1])]
    pairs = zip(high, low, strict=False)
    return sum(a - b >= _SWING for a, b in pairs) >= _SWING_SHARE * len(accuracy)


def _until_unsound(training: Training, patience: int = 30) -> Iterator[Any]:
    """The steps of a training, until its loss was no number for ``patience`` of them, as evenflow has it."""
    unsound = 0
    for figures in training.run():
        yield figures
        sound = all(math.isfinite(float(value)) for value in figures.values())
        unsound = 0 if sound else unsound + 1
        if unsound >= patience:
            return


def _verdict(symptoms: Iterable[str], causes: Iterable[str]) -> Verdict:
    return Verdict(tuple(dict.fromkeys(symptoms)), tuple(dict.fromkeys(causes)))


PEERS: dict[str, tuple[str | None, Tool]] = {
    "AutoTrainer": (None, autotrainer_tool),
    "torch-audit": ("torch_audit", torch_audit_tool),
    "torchmortem": ("torchmortem", torchmortem_tool),
}
"""Name → the module that it needs, if any, and how it is run."""
