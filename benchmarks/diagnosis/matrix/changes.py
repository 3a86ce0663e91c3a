"""What a fault does to a recipe: its model, optimizer, data, loss or number format changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from benchmarks.diagnosis.controls.dense import changed
from benchmarks.diagnosis.layers import Detached
from benchmarks.diagnosis.recipe import Recipe, answer, mapped
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.lab.networks.deep import ResidualBlock


def built(change: Callable[[nn.Module], object]) -> Callable[[Recipe], Recipe]:
    return lambda one: replace(one, build=changed(one.build, change))


def ended(last: Callable[[], nn.Module], loss: Any = None) -> Callable[[Recipe], Recipe]:
    """The model with one more module at its end."""
    return lambda one: replace(
        one, build=lambda: nn.Sequential(one.build(), last()), loss=one.loss if loss is None else loss
    )


def tuned(**changes: Callable[[Any], Any]) -> Callable[[Recipe], Recipe]:
    """The optimizer with other settings, by name."""

    def change(one: Recipe) -> Recipe:
        def optimizer(model: nn.Module) -> Any:
            made = one.optimizer(model)
            for group in made.param_groups:
                group.update({name: new(group[name]) for name, new in changes.items()})
            return made

        return replace(one, optimizer=optimizer)

    return change


def fed(inputs: Any = lambda x: x, targets: Any = lambda y: y) -> Callable[[Recipe], Recipe]:
    return lambda one: replace(one, data=mapped(one.data, inputs, targets))


def scaled(factor: float) -> Callable[[nn.Module], object]:
    """All matrices but tables of words."""
    return lambda model: [
        p.mul_(factor)
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.dim() > 1
    ]


def filled(value: float) -> Callable[[nn.Module], object]:
    return lambda model: [p.fill_(value) for p in model.parameters() if p.dim() > 1]


def swapped(kinds: tuple[type, ...], other: Callable[[Any], nn.Module]) -> Callable[[nn.Module], object]:
    """Every module of these kinds replaced."""

    def change(model: nn.Module) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, kinds):
                    setattr(parent, name, other(child))

    return change


def skipless(block: Any) -> nn.Module:
    if isinstance(block, ResidualBlock):
        return nn.Sequential(block.first, block.norm, block.act, block.second)
    return nn.Sequential(block.branch, block.act)


def dark(model: nn.Module) -> None:
    """Biases of −5 in all hidden linear maps and convolutions."""
    for module in [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][:-1]:
        if module.bias is not None:
            module.bias.fill_(-5.0)


def frozen(model: nn.Module) -> None:
    every = list(model.parameters())
    for parameter in every[: max(1, len(every) * 2 // 3)]:
        parameter.requires_grad_(False)


def detached(model: nn.Module) -> None:
    """The first part of a chain that has weights."""
    chain: Any = model if isinstance(model, nn.Sequential) else model.get_submodule("layers")
    for i in range(len(chain) // 2 + 1):
        if any(True for _ in chain[i].parameters()):
            chain[i] = Detached(chain[i])


def left_out(one: Recipe) -> Recipe:
    """Two of three parameters are not in the optimizer."""

    def optimizer(model: nn.Module) -> Any:
        made = one.optimizer(model)
        group = made.param_groups[0]
        group["params"] = group["params"][len(group["params"]) * 2 // 3 :]
        return made

    return replace(one, optimizer=optimizer)


def hoarding(one: Recipe) -> Recipe:
    """Gradients are never set to zero."""

    def step(model: nn.Module, optimizer: Any, batch: tuple[Any, Any]) -> Any:
        loss = one.loss(answer(model, batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return replace(one, more={"step": step})


def in_format(kind: torch.dtype) -> Callable[[Recipe], Recipe]:
    def change(one: Recipe) -> Recipe:
        return replace(
            one,
            build=lambda: one.build().to(kind),
            data=mapped(one.data, lambda x: x.to(kind) if x.is_floating_point() else x),
            loss=lambda output, target: one.loss(output.float(), target),
            metric=lambda output, target: one.metric(output.float(), target),
        )

    return change


def then(*changes: Callable[[Recipe], Recipe]) -> Callable[[Recipe], Recipe]:
    def change(one: Recipe) -> Recipe:
        for each in changes:
            one = each(one)
        return one

    return change


def squares(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.sigmoid(), F.one_hot(target, output.shape[-1]).float())


def waiting(x: Tensor) -> Tensor:
    """Sixty steps of nothing after the end of a series."""
    return torch.cat([x, x.new_zeros(len(x), 60, x.shape[2])], 1)
