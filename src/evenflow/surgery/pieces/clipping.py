"""What is done to gradients between the backward pass and the update.

Each clipper is called with the parameters whose gradients are complete, and changes
the gradients in place. None waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Clipper = Callable[[list[nn.Parameter]], object]


def before_update(optimizer: Optimizer, act: Clipper) -> Optimizer:
    """Let an optimizer call ``act`` with its parameters that have gradients, before each update."""

    def parameters() -> list[nn.Parameter]:
        return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def hook(_: Optimizer, args: Any, kwargs: Any) -> Any:
        given = args[1:]  # the first is the optimizer
        closure = given[0] if given else kwargs.get("closure")
        if closure is None:
            act(parameters())
            return None

        def clipped() -> Any:
            value = closure()
            act(parameters())
            return value

        return ((args[0], clipped), kwargs) if given else (args, {**kwargs, "closure": clipped})

    optimizer.register_step_pre_hook(hook)
    return optimizer


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Norm of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def scale_gradients(parameters: list[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by one number."""
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.device, p.grad.dtype))


class ClipNorm:
    """All gradients together have at most this norm. R. Pascanu et al., ICML 2013, algorithm 1."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(parameters, self.limit)


class ClipValue:
    """Each entry of a gradient is at most this large."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip."""
        nn.utils.clip_grad_value_(parameters, self.limit)


class ClipAdaptive:
    """Adaptive gradient clipping: a unit's gradient is at most a share of the unit's weights, in norm.

    References:
        A. Brock et al., "High-performance large-scale image recognition without
        normalization", ICML 2021, eq. 3 (units are rows; weights smaller than 1e-3 count as 1e-3).
    """

    def __init__(self, limit: float, smallest: float = 1e-3) -> None:
        self.limit, self.smallest = limit, smallest

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip."""
        for p in parameters:
            if p.grad is None:
                continue
            most = self.limit * self.by_unit(p.detach()).clamp(min=self.smallest)
            norm = self.by_unit(p.grad)
            p.grad.mul_(torch.where(norm > most, most / norm.clamp(min=1e-6), torch.ones_like(norm)))

    def by_unit(self, x: Tensor) -> Tensor:
        """Norm of each row; of the whole, for vectors."""
        dimensions = tuple(range(1, x.ndim)) if x.ndim > 1 else None
        norm: Tensor = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True)
        return norm


class ClipPercentile:
    """AutoClip: the norm is at most a percentile of all norms so far.

    References:
        P. Seetharaman et al., "AutoClip: adaptive gradient clipping for source
        separation networks", MLSP 2020, algorithm 1.
    """

    def __init__(self, percentile: float, history: int = 1000) -> None:
        self.percentile, self.history = percentile, history
        self.norms: list[Tensor] = []

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip."""
        if not parameters:
            return
        norm = total_norm(parameters).float()
        self.norms = [*self.norms, norm][-self.history :]
        limit = torch.nanquantile(torch.stack(self.norms), self.percentile / 100.0)
        scale_gradients(parameters, (limit / norm.clamp(min=1e-12)).clamp(max=1.0))


class ZClip:
    """A norm that is too many standard deviations above its running mean is brought down to them.

    A norm z deviations up, z > threshold, becomes mean + threshold²/z deviations.
    Mean and variance are exponential averages of the clipped norms, and those of the
    first ``warmup`` steps before that. A norm that is no number leaves them alone.

    References:
        A. Kumar et al., "ZClip: adaptive spike mitigation for LLM pre-training", 2025, algorithm 1.
    """

    def __init__(self, threshold: float = 2.5, decay: float = 0.97, warmup: int = 25) -> None:
        self.threshold, self.decay, self.warmup = threshold, decay, warmup
        self.norms: list[Tensor] = []
        self.mean = self.variance = torch.zeros(())

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Clip."""
        if not parameters:
            return
        norm = total_norm(parameters).float()
        if len(self.norms) < self.warmup:
            self.norms.append(norm)
            if len(self.norms) == self.warmup:
                seen = torch.stack(self.norms)
                self.mean, self.variance = seen.mean(), seen.var(unbiased=False)
            return
        std = self.variance.sqrt()
        z = (norm - self.mean) / (std + 1e-6)
        limit = self.mean + self.threshold**2 / z.clamp(min=self.threshold) * std
        spike = z > self.threshold
        scale_gradients(parameters, torch.where(spike, limit / norm, torch.ones_like(norm)))
        counted = torch.where(spike, limit, norm)
        number = torch.isfinite(counted)
        mean = self.decay * self.mean + (1 - self.decay) * counted
        variance = self.decay * self.variance + (1 - self.decay) * (counted - mean) ** 2
        self.mean = torch.where(number, mean, self.mean)
        self.variance = torch.where(number, variance, self.variance)


class Unscale:
    """Divide gradients of a scaled loss; a gradient that is no number becomes 0, and with it all others."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        """Divide."""
        if not parameters:
            return
        good = torch.stack([torch.isfinite(p.grad).all() for p in parameters if p.grad is not None]).all()
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(torch.where(good, p.grad / self.scale, torch.zeros_like(p.grad)))
