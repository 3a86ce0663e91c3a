"""Inputs and targets of mean 0 and standard deviation 1, done inside the model."""

from __future__ import annotations

from typing import Any

import torch


def standardise_inputs(
    module: Any, mean: tuple[float, ...], std: tuple[float, ...], dimension: int = -1
) -> None:
    """Let a module take (input − mean)/std in place of its first input.

    Args:
        module: Changed in place.
        mean: One number, or one per feature.
        std: Likewise.
        dimension: That of the features, in the input.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    module.register_buffer("input_mean", torch.tensor(mean, dtype=like.dtype, device=like.device))
    module.register_buffer("input_std", torch.tensor(std, dtype=like.dtype, device=like.device))
    module.input_dimension = dimension
    module.register_forward_pre_hook(take_standardised)


def take_standardised(module: Any, args: Any) -> Any:
    """The hook of a module with ``input_mean`` and ``input_std``."""
    x, mean, std = args[0], module.input_mean, module.input_std
    if mean.numel() > 1:
        shape = [1] * x.ndim
        shape[module.input_dimension] = -1
        mean, std = mean.view(shape), std.view(shape)
    return ((x.to(mean.dtype) - mean) / std, *args[1:])


def restore_outputs(module: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Let a module, which learns standardised targets, give them in their own units: output · std + mean.

    Args:
        module: Changed in place.
        mean: Of the targets: one number, or one per feature of the last dimension.
        std: Likewise.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    module.register_buffer("target_mean", torch.tensor(mean, dtype=like.dtype, device=like.device))
    module.register_buffer("target_std", torch.tensor(std, dtype=like.dtype, device=like.device))
    module.register_forward_hook(give_restored)


def give_restored(module: Any, args: Any, output: Any) -> Any:
    """The hook of a module with ``target_mean`` and ``target_std``."""
    return output * module.target_std + module.target_mean
