"""How close predict comes: every family, against the mean log of several real seeds.

    python benchmarks/predict.py                    all families, 4 seeds
    python benchmarks/predict.py --only GPT-2 LSTM  those whose names contain one of the words
    python benchmarks/predict.py --costs            time and memory instead
    python benchmarks/predict.py --classes          how many transformers classes it follows

One line a family: |Δlog10 RMS| per tensor, median / 95th percentile, for gradients
of parameters and at activations; the spread of single seeds; how many of the
single seeds lie in the stated interval. Structural zeros are counted apart.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from torch import nn

from evenflow.predict import Described, depth_law, predict

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.predict_classes import show, summary, sweep
from benchmarks.predict_models import families
from benchmarks.predict_score import ROLES, score


def accuracy(words: list[str], seeds: int) -> None:
    print(
        f"{'family':28s} {'parameters':>13s} {'seeds':>6s} {'in':>5s}"
        f" | {'activations':>13s} {'seeds':>6s} {'in':>5s} | missing zeros seconds"
    )
    for case in families():
        if words and not any(word.lower() in case.name.lower() for word in words):
            continue
        try:
            found = score(case, seeds)
        except Exception:
            print(f"{case.name:28s} failed:", traceback.format_exc(limit=1).splitlines()[-1][:120])
            continue
        parts = []
        for role in ROLES:
            median, p95, spread, _ = found.line(role)
            inside = sum(found.covered[role]) / max(len(found.covered[role]), 1)
            parts.append(f"{median:6.3f}/{p95:6.3f} {spread:6.3f} {inside:5.0%}")
        print(
            f"{case.name:28s} "
            + " | ".join(parts)
            + f" | {len(found.missing):5d} {len(found.zeros):5d} {found.seconds:6.1f}",
            flush=True,
        )
        for note in found.notes:
            print("    ", note)


def _timed(name: str, build: object, inputs: object, loss: object = None) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    flow = predict(build, inputs, loss)  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    known = sum(row.stats is not None for row in flow)
    print(
        f"{name:40s} {time.perf_counter() - start:6.1f} s ({time.process_time() - cpu:.1f} s of CPU), "
        f"peak of the process {peak:.2f} GiB, {known} of {len(flow)} rows known",
        flush=True,
    )


def costs() -> None:
    def deep() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(1000) for layer in (nn.Linear(128, 128), nn.Tanh())])

    predict(lambda: nn.Linear(4, 4), Described((4, 4)))  # imports
    _timed("1000-layer MLP", deep, Described((64, 128)))
    law = depth_law(predict(deep, Described((64, 128))), "addmm")
    print(f"    slope {law.slope:.5f} decades a layer, ξ = {law.depth_scale:.1f}")
    import transformers as t

    ids = torch.randint(32000, (1, 2048), generator=torch.Generator().manual_seed(0))
    large = t.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    small = t.GPT2Config(n_layer=12, n_embd=768, n_head=12)
    for name, make, shape in (
        ("GPT-2, 12 layers, batch 8, 1024 tokens", lambda: t.GPT2LMHeadModel(small), (8, 1024)),
        ("Llama-70B shape, 2048 tokens", lambda: t.LlamaForCausalLM(large), (1, 2048)),
    ):
        tokens = ids[:, : shape[1]].expand(shape[0], -1).contiguous()
        _timed(name, make, {"input_ids": tokens, "labels": tokens, "use_cache": False})


def coverage(words: list[str]) -> None:
    print(summary(sweep(words, show)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--classes", action="store_true")
    chosen = parser.parse_args()
    if chosen.costs:
        costs()
    elif chosen.classes:
        coverage(chosen.only)
    else:
        accuracy(chosen.only, chosen.seeds)
