"""What predict costs, each case in a process of its own.

    python benchmarks/predict.py --costs              all cases
    python benchmarks/predict.py --costs --only GPT-2

One line a case: seconds (of processor time, for machines that do other things
too), the peak memory of the process, the ops on the tape, and the *floor*: what
those ops would cost if each were only seen by a dispatch mode and answered with
a tensor of a remembered shape. The rest of the time is tables, rows and the
model's own Python. "First call": seconds that the very first prediction of the
process took, of one linear layer with tanh, and so mostly imports; the case comes after it.
For GPT-2 small a real training step (forward, backward,
AdamW, float32) on the same batch is timed beside.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenflow.predict import Described, predict
from evenflow.predict.ops import op_of
from evenflow.predict.shapes import Shapes


@dataclass
class Cost:
    """A model, what it is called with, and the bar in seconds and GiB; no seconds: its own training step."""

    build: Callable[[], nn.Module]
    inputs: Any
    seconds: float | None
    memory: float | None = None


def deep() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(1000) for layer in (nn.Linear(128, 128), nn.Tanh())])


def tokens(batch: int, length: int) -> dict[str, Any]:
    ids = torch.randint(32000, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def small() -> nn.Module:
    import transformers as t

    return t.GPT2LMHeadModel(t.GPT2Config())


def large() -> nn.Module:
    import transformers as t

    return t.LlamaForCausalLM(
        t.LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=32000,
        )
    )


COSTS = {
    "MLP, 1000 layers": Cost(deep, Described((64, 128)), 2.0),
    "GPT-2 small, batch 8, 128 tokens": Cost(small, tokens(8, 128), None),
    "GPT-2 small, batch 2, 1024 tokens": Cost(small, tokens(2, 1024), None),
    "Llama-70B shape, 2048 tokens": Cost(large, tokens(1, 2048), 15.0, 1.5),
}


class _Seen(TorchDispatchMode):
    """Sees an op and answers with a remembered shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes = Shapes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.shapes.run(op_of(func), args, kwargs or {})


def floor_of_an_op() -> float:
    """Seconds of processor time that the least op takes."""
    x = torch.empty(64, 128, device="meta")
    with _Seen():
        for _ in range(100):
            x.mul(x)
        start = time.process_time()
        for _ in range(5000):
            x.mul(x)
        return (time.process_time() - start) / 5000


def training_step(case: Cost) -> float:
    """Seconds of processor time of one step, after a small one to warm up."""
    model = case.build()
    optimizer = torch.optim.AdamW(model.parameters())
    start = 0.0
    for batch in ({"input_ids": torch.zeros(1, 8, dtype=torch.long)}, case.inputs):
        start = time.process_time()
        loss: Tensor = model(**{"labels": batch["input_ids"]} | batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start


def ops_of(case: Cost) -> int:
    """Ops on the tape, counted in a second prediction."""
    count, run = 0, Shapes.run

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return run(*args)

    with mock.patch.object(Shapes, "run", counted):
        predict(case.build, case.inputs)
    return count


def measured(name: str) -> dict[str, Any]:
    """One case, in this process."""
    case = COSTS[name]
    cpu = time.process_time()
    predict(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), Described((4, 4)))
    first = time.process_time() - cpu
    if isinstance(case.inputs, dict):
        import transformers as t

        t.GPT2LMHeadModel, t.LlamaForCausalLM  # noqa: B018 - imports as well
    cpu, wall = time.process_time(), time.perf_counter()
    flow = predict(case.build, case.inputs)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = ops_of(case)
    return {
        "first": first,
        "cpu": cpu,
        "wall": wall,
        "peak": peak,
        "rows": len(flow),
        "known": sum(row.stats is not None for row in flow),
        "ops": count,
        "floor": count * floor_of_an_op(),
        "step": training_step(case) if case.seconds is None else None,
    }


def costs(words: list[str]) -> None:
    for name, case in COSTS.items():
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["nothing on stderr"])[-1][:200]
            print(f"{name}: failed with exit code {run.returncode} (-9: out of memory): {last}", flush=True)
            continue
        r = json.loads(run.stdout.splitlines()[-1])
        bar = f"a training step {r['step']:.1f} s" if case.seconds is None else f"bar {case.seconds:.0f} s"
        if case.memory is not None:
            bar += f" and {case.memory} GiB"
        print(
            f"{name:34s} {r['cpu']:6.1f} s of processor ({r['wall']:.1f} s of clock; {bar}), "
            f"peak {r['peak']:.2f} GiB, {r['ops']} ops, floor {r['floor']:.2f} s "
            f"({r['cpu'] / r['floor']:.0f}×), {r['known']} of {r['rows']} rows known; "
            f"first call {r['first']:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(measured(sys.argv[1])))
