"""Trainings that one process runs on the whole batch, and several on parts of it, under every sharding."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from evenflow.watch import Watch, watch

BATCH = 8


def net() -> nn.Module:
    """Widths that two does not divide, so that shards are uneven."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def sequence_net() -> nn.Module:
    """For inputs [batch, 6, 4]."""
    torch.manual_seed(0)
    layers = [nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double()


def batch(seed: int, model: Callable[[], nn.Module]) -> tuple[Tensor, Tensor]:
    """The whole batch of a step."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, 5) if model is net else (BATCH, 6, 4)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(2, (BATCH,), generator=generator)


def mesh(*shape: int) -> DeviceMesh:
    names = ("data", "tensor")[2 - len(shape) :]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    over = mesh(2)
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=over)
    fully_shard(model, mesh=over)
    return model


def tensor_parallel(model: nn.Module) -> nn.Module:
    return parallelize_module(model, mesh(2), {"1": ColwiseParallel(), "3": RowwiseParallel()})


def sequence_parallel(model: nn.Module) -> nn.Module:
    """Each rank has the norms of a part of the sequence, so their gradients are partial sums."""
    plan = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1)),
        "3": RowwiseParallel(output_layouts=Shard(1)),
        "4": SequenceParallel(),
        "5": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    whole_to_part = PrepareModuleInput(
        input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
    )
    over = mesh(2)
    return parallelize_module(parallelize_module(model, over, whole_to_part), over, plan)


def fsdp_tensor_parallel(model: nn.Module) -> nn.Module:
    over = mesh(2, 2)
    parallelize_module(model, over["tensor"], {"1": ColwiseParallel(), "3": RowwiseParallel()})
    fully_shard(model, mesh=over["data"])
    return model


def hybrid(model: nn.Module) -> nn.Module:
    """Two replicas of two shards each."""
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard")))
    return model


def unharmed(step: int, micro_batch: int, rank: int) -> float:
    return 1.0


adamw = partial(torch.optim.AdamW, lr=1e-2)
one_by_one = partial(torch.optim.AdamW, lr=1e-2, foreach=False)
"""PyTorch's multi-tensor optimizers, and its clipping, take no mixture of meshes, or of DTensors and plain
tensors."""


@dataclass
class Case:
    """A training.

    Attributes:
        shard: Makes of the model what a rank trains.
        model: Makes the model, the same on every rank.
        optimizer: Makes the optimizer.
        parts: Into how many parts ranks cut the batch.
        micro_batches: Into how many parts a rank cuts its part.
        clip: Norm to which gradients are clipped; 0 for none.
        scaled: Whether a GradScaler is used.
        budget: As :func:`evenflow.watch` takes it.
        steps: How many.
        harm: What the loss of a step, micro-batch and rank is multiplied by.
    """

    shard: Callable[[nn.Module], nn.Module]
    model: Callable[[], nn.Module] = net
    optimizer: Callable[[Any], torch.optim.Optimizer] = adamw
    parts: int = 2
    micro_batches: int = 1
    clip: float = 0.0
    scaled: bool = False
    budget: float | None = None
    steps: int = 3
    harm: Callable[[int, int, int], float] = unharmed


def bad_rank(step: int, micro_batch: int, rank: int) -> float:
    """In step 1 rank 0 has a hundredfold loss, and in step 2 rank 1 has a NaN in its second micro-batch."""
    if (step, micro_batch, rank) == (2, 1, 1):
        return math.nan
    return 100.0 if (step, micro_batch, rank) == (1, 0, 0) else 1.0


SAME = {
    "ddp": Case(ddp, clip=0.1),
    "ddp_accumulated": Case(ddp, micro_batches=2, optimizer=partial(torch.optim.SGD, lr=0.1)),
    "ddp_scaled": Case(ddp, scaled=True, clip=0.05),
    "fsdp": Case(fsdp, clip=0.1),
    "fsdp_accumulated": Case(fsdp, micro_batches=2),
    "tensor_parallel": Case(tensor_parallel, sequence_net, one_by_one, parts=1),
    "sequence_parallel": Case(sequence_parallel, sequence_net, one_by_one, parts=1),
}
OTHERS = {
    "bad_rank_ddp": Case(ddp, micro_batches=2, harm=bad_rank),
    "bad_rank_fsdp": Case(fsdp, micro_batches=2, harm=bad_rank),
}
ON_FOUR = {
    "fsdp_tensor_parallel": Case(fsdp_tensor_parallel, sequence_net, one_by_one),
    "hybrid": Case(hybrid, parts=4),
}
CASES = {**SAME, **OTHERS, **ON_FOUR}


def train(
    case: Case, path: str | None = None, rank: int = 0, size: int = 1, *, watched: bool = True
) -> tuple[Watch | None, nn.Module]:
    """Train on this rank; on a single one, on the whole batch."""
    alone = size == 1
    model = case.model() if alone else case.shard(case.model())
    optimizer = case.optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=case.scaled)
    part = 0 if alone else rank * case.parts // size
    with watch(model, optimizer, path=path, budget=case.budget) if watched else nullcontext() as run:
        for step in range(case.steps):
            inputs, target = (
                whole.chunk(1 if alone else case.parts)[part] for whole in batch(step, case.model)
            )
            micro_batches = list(
                zip(inputs.chunk(case.micro_batches), target.chunk(case.micro_batches), strict=True)
            )
            for number, (x, y) in enumerate(micro_batches):
                with _synchronised(model, number == len(micro_batches) - 1):
                    output = model(x)
                    loss = F.cross_entropy(output if output.ndim == 2 else output.mean(1), y)
                    loss = loss * case.harm(step, number, rank)
                    scaler.scale(loss / len(micro_batches)).backward()
                if run is not None:
                    run.log(loss=loss)
            if case.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), case.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return run, model


def _synchronised(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Ranks reduce gradients in the last micro-batch only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext()
