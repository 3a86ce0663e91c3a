"""The losses of the corpus, with the semantics of the framework that they came from.

Keras' losses work on the network's outputs, usually probabilities: they divide by
the sum where Keras does, clip to [1e-7, 1 − 1e-7] and take logs. The clip has no
gradient outside its range, which is part of several faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.diagnosis.data import UnbuildableError
from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-7
"""keras.backend.epsilon()"""

Spec = dict[str, Any]


def one_hot_like(out: Tensor, y: Tensor) -> Tensor:
    """Labels as floats of the shape of ``out``: one-hot, or the bare number for one output."""
    if y.is_floating_point():
        return y
    if out.shape[-1] == 1 or out.shape == y.shape:
        return y.to(out.dtype).reshape(out.shape)
    return F.one_hot(y, out.shape[-1]).to(out.dtype)


def _mse(out: Tensor, y: Tensor, spec: Spec) -> Tensor:
    square = (out - one_hot_like(out, y)) ** 2
    if spec.get("scale") == "0.5*sum over outputs, mean over batch":
        return 0.5 * square.flatten(1).sum(1).mean()
    if "scale" in spec:
        raise UnbuildableError(f"unknown scale {spec['scale']!r}")
    return square.mean()


def _ce(out: Tensor, y: Tensor, spec: Spec) -> Tensor:
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


def _cce_keras(out: Tensor, y: Tensor, spec: Spec) -> Tensor:
    q = (out / out.sum(-1, keepdim=True)).clamp(_EPSILON, 1 - _EPSILON)
    return -(one_hot_like(out, y) * q.log()).sum(-1).mean()


def _bce_probs(out: Tensor, y: Tensor, spec: Spec) -> Tensor:
    p, y = out.clamp(_EPSILON, 1 - _EPSILON), one_hot_like(out, y)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def _sigmoid_ce_raw(out: Tensor, y: Tensor, spec: Spec) -> Tensor:
    y = one_hot_like(out, y)
    return (-y * out.log() - (1 - y) * (1 - out).log()).mean()


SUPERVISED: dict[str, Callable[[Tensor, Tensor, Spec], Tensor]] = {
    "mse": _mse,
    "mae": lambda o, y, s: (o - one_hot_like(o, y)).abs().mean(),
    "sum_squared_error": lambda o, y, s: ((o - one_hot_like(o, y)) ** 2).sum(),
    "ce_with_logits": _ce,
    "cce_on_outputs_keras": _cce_keras,
    "bce_on_probs": _bce_probs,
    "sum_ce_unstable": lambda o, y, s: -(one_hot_like(o, y) * o.log()).sum(),
    "sigmoid_ce_on_raw_logits_unstable": _sigmoid_ce_raw,
    "ce_mean_on_probs": lambda o, y, s: -(one_hot_like(o, y) * o.log()).sum(-1).mean(),
    "nll_on_probs": lambda o, y, s: F.nll_loss(o, y),
    "nll_on_log_probs": lambda o, y, s: F.nll_loss(o, y),
}


# --- adversarial ---------------------------------------------------------------------


def discriminator_loss(spec: Spec, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator lowers; ``fake`` is detached."""
    real_score, fake_score = judge(real), judge(fake)
    if spec["name"] == "gan_bce_nonsaturating":
        return _bce(spec, real_score, 1.0) + _bce(spec, fake_score, 0.0)
    loss = fake_score.mean() - real_score.mean()
    if spec["name"] == "wgan_gp":
        mix = torch.rand(len(fake), *[1] * (fake.dim() - 1))
        point = (mix * real + (1 - mix) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(judge(point).sum(), point, create_graph=True)
        loss = loss + spec["lambda_"] * ((slope.flatten(1).norm(2, 1) - 1) ** 2).mean()
    return loss


def generator_loss(spec: Spec, judge: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
    """What the generator lowers."""
    score = judge(fake)
    return _bce(spec, score, 1.0) if spec["name"] == "gan_bce_nonsaturating" else -score.mean()


def _bce(spec: Spec, p: Tensor, label: float) -> Tensor:
    target = torch.full_like(p, label)
    if "with_logits" in str(spec.get("D")):
        return F.binary_cross_entropy_with_logits(p, target)
    return F.binary_cross_entropy(p, target)
