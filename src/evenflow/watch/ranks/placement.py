"""Which part of a tensor a rank holds.

A DTensor lies on a mesh of ranks. Along each axis of the mesh it is cut into shards,
held whole by everyone (replicated), or a sum that nobody has taken yet (partial).
Two ranks with the same shard hold the same *piece*, which is to be counted once;
uneven shards have no padding here, for a rank's own tensor is what it holds of the
whole. A plain tensor is one piece, and whoever has it has all of it.

Ranks that hold parts of one copy of the model and see the same batch are *tensor-
parallel peers*. An axis of a mesh along which ``fully_shard`` cuts is no such: the
ranks there see different parts of the batch.

Reference: https://docs.pytorch.org/docs/stable/distributed.tensor.html
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Piece(NamedTuple):
    """What a rank holds of a tensor.

    Attributes:
        number: Which piece.
        pieces: How many there are.
        addend: Which of the addends of the piece.
        addends: How many there are; 1 unless the sum is still to be taken.
    """

    number: int = 0
    pieces: int = 1
    addend: int = 0
    addends: int = 1


WHOLE = Piece()
NOTHING = Piece(-1, 0)
"""What a rank holds of a tensor that lies on other ranks."""


def rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of ranks; (0, 1) without distributed training."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without any communication; a plain tensor as it is."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter or not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        held: Tensor = tensor.to_local()
    return held


def piece_of(tensor: Any) -> Piece:
    """Which piece of a tensor this rank holds."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter or not hasattr(tensor, "placements"):
        return WHOLE
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return NOTHING
    number, pieces, addend, addends = WHOLE
    for size, place, placement in zip(tensor.device_mesh.shape, coordinate, tensor.placements, strict=True):
        if placement.is_partial():
            addend, addends = addend * size + place, addends * size
        elif not placement.is_replicate():
            number, pieces = number * size + place, pieces * size
    return Piece(number, pieces, addend, addends)


def is_sharded(models: Iterable[nn.Module]) -> bool:
    """Whether any parameter is a DTensor: running such a model takes all of its ranks."""
    return any(hasattr(parameter, "device_mesh") for model in models for parameter in model.parameters())


def tensor_parallel_peers(models: Iterable[nn.Module], rank: int) -> tuple[int, ...]:
    """The ranks that see the same batch as this one, itself included, ascending."""
    modules = [module for model in models for module in model.modules()]
    data = {rank}.union(*(_ranks(mesh) for mesh in map(_data_mesh, modules) if mesh is not None))
    peers = {rank}
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is None or not hasattr(parameter, "device_mesh"):
                continue
            mesh = parameter.device_mesh
            coordinate = mesh.get_coordinate()
            if coordinate is None:
                continue
            along = [
                slice(None) if not set(_line(mesh, coordinate, axis)) <= data else place
                for axis, place in enumerate(coordinate)
            ]
            peers.update(mesh.mesh[tuple(along)].flatten().tolist())
    return tuple(sorted(peers))


def gradient_divisor(models: Iterable[nn.Module]) -> float | None:
    """By what ``fully_shard`` was told to divide summed gradients; None if it takes their mean."""
    for model in models:
        for module in model.modules():
            group = _parameter_group(module)
            if group is not None and group.gradient_divide_factor is not None:
                return float(group.gradient_divide_factor)
    return None


def class_name(module: nn.Module) -> str:
    """Class of a module as its author named it: ``fully_shard`` puts a class of its own in front."""
    kind = type(module)
    if _parameter_group(module) is not None or hasattr(module, "_get_fsdp_state"):
        kind = next((base for base in kind.__bases__ if base.__name__ != "FSDPModule"), kind)
    return kind.__name__


def _parameter_group(module: nn.Module) -> Any:
    """What ``fully_shard`` keeps of the module's own parameters; None for other modules.

    There is no public way to it; torch 2.6 to 2.13 have this one.
    """
    state = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None  # type: ignore[operator]
    return getattr(state, "_fsdp_param_group", None)


def _data_mesh(module: nn.Module) -> Any:
    group = _parameter_group(module)
    return None if group is None else group.mesh_info.mesh


def _ranks(mesh: Any) -> list[int]:
    ranks: list[int] = mesh.mesh.flatten().tolist()
    return ranks


def _line(mesh: Any, coordinate: list[int], axis: int) -> list[int]:
    """The ranks along one axis of a mesh, through a coordinate."""
    ranks: list[int] = mesh.mesh[
        tuple(slice(None) if i == axis else c for i, c in enumerate(coordinate))
    ].tolist()
    return ranks
