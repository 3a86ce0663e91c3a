"""What measure costs: time and peak memory over one plain forward and backward pass.

    python benchmarks/measure.py [--repeats 15]

Each round times the plain pass and ``measure`` in random order, so a machine
that slows down slows both; the ratio of a round is what is summarised. Peak
memory is what the allocator handed out above the level before the pass, seen by
the profiler's memory events (CPU) or the caching allocator (CUDA).

The floor: ``measure`` reads every activation, every gradient and every
parameter once more than training does. The line "floor" is the time of one
``abs().max()`` over all of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenflow.flow import Flow, Role
from evenflow.measure import measure

Case = tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor], Callable[..., Tensor] | None]


def mlp() -> Case:
    """30 linear layers of 256 with tanh, batch 128."""
    layers: list[nn.Module] = []
    for _ in range(30):
        layers += [nn.Linear(256, 256), nn.Tanh()]
    target = torch.randint(10, (128,))
    return (
        nn.Sequential(*layers, nn.Linear(256, 10)),
        (torch.randn(128, 256),),
        lambda output: F.cross_entropy(output, target),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(branch)))


def resnet() -> Case:
    """A stem and 9 residual blocks of 32 channels on 32×32 images, batch 32."""
    target = torch.randint(10, (32,))
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        *(_Residual(32) for _ in range(9)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return model, (torch.randn(32, 3, 32, 32),), lambda output: F.cross_entropy(output, target)


def gpt2() -> Case:
    """GPT-2 of 6 blocks of 256, 8 heads, vocabulary 1024, on 8×128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=6, n_embd=256, n_head=8, vocab_size=1024, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(1024, (8, 128))
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # as it takes anyway, with a warning that cannot be compiled
    return model, {"input_ids": tokens, "labels": tokens}, None


def plain(
    model: nn.Module, inputs: tuple[Tensor, ...] | dict[str, Tensor], loss: Callable[..., Tensor] | None
) -> None:
    """One forward and backward pass."""
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    (output.loss if loss is None else loss(output)).backward()
    model.zero_grad(set_to_none=True)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that was handed out at any one time during ``run``, above what was in use before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    level = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def floor(flow: Flow) -> float:
    """Time of one plain read of as many entries as the flow has statistics of."""
    tensors = [torch.ones(row.stats.count) for role in Role for row in flow.select(role) if row.stats]
    return min(seconds(lambda: [float(tensor.abs().max()) for tensor in tensors]) for _ in range(3))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {repeats} rounds, order shuffled\n")
    print(
        f"{'':14}{'plain':>10}{'measure':>10}{'ratio':>8}{'(quartiles)':>15}{'floor':>9}{'memory ratio':>14}"
    )
    shuffle = random.Random(0)
    for build in (mlp, resnet, gpt2):
        torch.manual_seed(0)
        model, inputs, loss = build()
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda m=model, i=inputs, lo=loss: plain(m, i, lo),  # type: ignore[misc]
            "measure": lambda m=model, i=inputs, lo=loss: measure(m, i, lo),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(repeats):
            for name in shuffle.sample(list(runs), k=2):
                times[name].append(seconds(runs[name]))
        ratios = [b / a for a, b in zip(times["plain"], times["measure"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        memory = peak_bytes(runs["measure"]) / peak_bytes(runs["plain"])
        print(
            f"{build.__name__:14}{statistics.median(times['plain']) * 1e3:8.1f}ms"
            f"{statistics.median(times['measure']) * 1e3:8.1f}ms{middle:8.2f}{f'({low:.2f}–{high:.2f})':>15}"
            f"{floor(measure(model, inputs, loss)) * 1e3:7.1f}ms{memory:14.2f}"
        )


if __name__ == "__main__":
    main()
