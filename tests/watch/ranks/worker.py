"""What one of several ranks runs: ``python -m tests.watch.ranks.worker FOLDER RANK SIZE CASE…``."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from evenflow.watch import watch
from evenflow.watch.governor import Governor
from tests.watch.ranks.programs import CASES, Case, ddp, fsdp, train

Said = dict[str, Any]


def recorded(case: Case, path: str, rank: int, size: int) -> Said:
    run, _ = train(case, path, rank, size)
    assert run is not None
    return {"trouble": run.trouble, "sampled": run.cost.sampled, "flows_here": len(run.run.steps)}


def bitwise(path: str, rank: int, size: int) -> Said:
    """Whether weights are the same with and without watching."""
    same = []
    for case in (Case(ddp, clip=0.1, micro_batches=2), Case(fsdp, clip=0.1)):
        weights = [list(train(case, None, rank, size, watched=w)[1].parameters()) for w in (True, False)]
        same += [torch.equal(_held(a), _held(b)) for a, b in zip(*weights, strict=True)]
    return {"same": same}


def one_breaks(path: str, rank: int, size: int) -> Said:
    """Something inside evenflow fails on rank 1."""
    broken = mock.Mock(side_effect=RuntimeError("broken for a test"))
    fault = mock.patch("evenflow.watch.ranks.speaker._rows", broken)
    case = Case(ddp, steps=8)
    with fault if rank == 1 else mock.patch("evenflow.watch.ranks.team.PATIENCE", 60.0):
        run, model = train(case, path, rank, size)
    _, other = train(case, None, rank, size, watched=False)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return {"trouble": run and run.trouble, "same": [torch.equal(a, b) for a, b in pairs]}


def only_one_watches(path: str, rank: int, size: int) -> Said:
    with mock.patch("evenflow.watch.ranks.team.PATIENCE", 1.0):
        run, _ = train(Case(ddp), path, rank, size, watched=rank == 0)
    if rank == 0:
        assert run is not None
        return {"trouble": run.trouble, "flows_here": len(run.run.steps)}
    return {}


def one_never_steps(path: str, rank: int, size: int) -> Said:
    """Rank 1 watches a training that takes no step; rank 0 has to agree with it on what to sample."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with mock.patch("evenflow.watch.ranks.team.PATIENCE", 1.0):
        with watch(model, optimizer, path=path, budget=0.1) as run:
            for _ in range(10 if rank == 0 else 0):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
            dist.barrier()
        steps = run.step
    return {"steps": steps, "trouble": run.trouble}


def one_raises(path: str, rank: int, size: int) -> Said:
    """Training ends by an exception on rank 1; rank 0 ends as usual."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    try:
        with watch(model, optimizer, path=path, budget=None) as run:
            for step in range(4):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                run.log(loss=float(step))
            dist.barrier()
            if rank == 1:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return {"trouble": run.trouble}


def agreement(path: str, rank: int, size: int) -> Said:
    """Rank 0 could afford a sample in 5 steps, and rank 1 in 9."""
    with mock.patch.object(Governor, "wait", return_value=(5, 9)[rank]):
        return recorded(Case(ddp, budget=0.9, steps=40), path, rank, size)


def bad_batch(path: str, rank: int, size: int) -> Said:
    """In step 2 the batch of rank 1 holds a NaN, which the reduction spreads to all gradients."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, path=path, budget=None) as run:
        for step in range(4):
            x = torch.ones(2, 3)
            x[0, 0] = math.nan if rank == 1 and step == 2 else 1.0
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"trouble": run.trouble, "flights": [asdict(flight) for flight in run.flights]}


BEHAVIOURS: dict[str, Callable[[str, int, int], Said]] = {
    one.__name__: one
    for one in (bitwise, one_breaks, only_one_watches, one_never_steps, one_raises, agreement, bad_batch)
}


def main(folder: Path, rank: int, size: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    said = {}
    for name in names:
        path, began = f"{folder}/{name}", perf_counter()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            one = (
                BEHAVIOURS[name](path, rank, size)
                if name in BEHAVIOURS
                else recorded(CASES[name], path, rank, size)
            )
        said[name] = {
            **one,
            "seconds": round(perf_counter() - began, 2),
            "told": [f"{each.category.__name__}: {each.message}" for each in told],
        }
        dist.barrier()
    dist.destroy_process_group()
    (folder / f"said{rank}.json").write_text(json.dumps(said), encoding="utf-8")


def _held(parameter: torch.Tensor) -> torch.Tensor:
    held: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return held


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
