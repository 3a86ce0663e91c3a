"""Changes of an optimizer: another one over the same parameters, its settings, warm-up."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def parameter_groups(optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
    """The groups of an optimizer for another one: parameters, weight decay, ratios of learning rates."""
    first = float(optimizer.param_groups[0]["lr"])
    return [
        {
            "params": group["params"],
            "weight_decay": group.get("weight_decay", 0.0),
            "lr": lr * (float(group["lr"]) / first if first else 1.0),
        }
        for group in optimizer.param_groups
    ]


def set_option(optimizer: Optimizer, key: str, value: Any) -> Optimizer:
    """Set an option in all groups."""
    for group in optimizer.param_groups:
        group[key] = value
    optimizer.defaults[key] = value
    return optimizer


def scale_lr(optimizer: Optimizer, factor: float) -> Optimizer:
    """Multiply the learning rate of all groups."""
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr"):
            if key in group:
                group[key] = group[key] * factor
    return optimizer


def warm_up(optimizer: Optimizer, steps: int) -> Optimizer:
    """Let the learning rate rise linearly over the first steps; schedulers see it as without."""
    done, lrs = 0, [0.0]

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal done, lrs
        done += 1
        lrs = [group["lr"] for group in optimizer.param_groups]
        if done < steps:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * (done / steps)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
