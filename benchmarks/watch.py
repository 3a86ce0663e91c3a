"""What watching costs: a training step with it, over the bare step, beside other tools.

    python benchmarks/watch.py [--rounds 40] [--net mlp] [--peers]
    python benchmarks/watch.py --call      what a call of a hook costs outside the hook

Every tool trains a copy of its own of the same model. In each round every copy
makes one step, in random order, so a machine that slows down slows all alike, and
the ratio of a round to the bare step of that round is what is summarised (median
and quartiles). "at every step" tools look at everything in each step. The line of
the default budget is different, for there one step costs more and most cost
nothing: it is the mean over the mean, over the same rounds.

plain hooks: one ``norm().item()`` in a forward hook, a backward hook and a
parameter hook for each module and parameter, as people write it by hand.
foreach norm: nothing but one batched norm of all gradients.

The governor's clock stands still for a watch while other tools make their steps;
else it would take their time for training and spend a share of that too.
``--clock cpu`` counts processor time, of all threads, in place of wall-clock time:
for machines that others use at the same time.

The floor is one plain read (``dot``) of all that "everything" reads: activations,
their gradients, parameters and gradients once, and two reads and a write more for
the update.

``--peers`` needs ``pip install wandb torchmortem``; wandb runs offline.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.flow import Role
from evenflow.watch import Watch, guard, watch, watcher

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import Case, gpt2, mlp, resnet

NETS: dict[str, Callable[[], Case]] = {"mlp": mlp, "resnet": resnet, "gpt2": gpt2}
Step = Callable[[], Tensor]
_WARM_UP = 3


def training(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Step]:
    """The model, its optimizer and one training step."""
    model, inputs, loss = case
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> Tensor:
        output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        value: Tensor = output.loss if loss is None else loss(output)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value

    return model, optimizer, step


def with_watch(budget: float | None, *, recorder: bool = True) -> Callable[..., Step]:
    def tool(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = stack.enter_context(
            watch(model, optimizer, path=f"{folder}/run", budget=budget, flight_recorder=recorder)
        )

        def watched() -> Tensor:
            loss = step()
            run.log(loss=loss)
            return loss

        watched.run = run  # type: ignore[attr-defined]
        return watched

    return tool


def with_hooks(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    """A norm of every output, its gradient and every parameter gradient, each brought to the host."""
    seen: list[float] = []

    def look(value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            seen.append(value.norm().item())

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: look(output))
            module.register_full_backward_hook(lambda module, into, out: look(out[0]))  # type: ignore[index]
    for parameter in model.parameters():
        parameter.register_hook(look)

    def hooked() -> Tensor:
        seen.clear()
        return step()

    return hooked


def with_norm(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    """One batched norm of all gradients."""

    def look(*_: Any) -> None:
        torch.stack(
            torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
        ).norm().item()

    optimizer.register_step_pre_hook(look)
    return step


def with_wandb(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    """``wandb.watch(log="all")`` at every step, offline."""
    import wandb  # type: ignore[import-not-found, unused-ignore]

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
    stack.callback(run.finish)
    run.watch(model, log="all", log_freq=1)

    def logged() -> Tensor:
        loss = step()
        run.log({"loss": loss.item()})
        return loss

    return logged


def with_torchmortem(
    stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step
) -> Step:
    """Its default sampling."""
    from torchmortem import Autopsy  # type: ignore[import-not-found, unused-ignore]

    autopsy = stack.enter_context(Autopsy(model, optimizer=optimizer))

    def examined() -> Tensor:
        loss = step()
        autopsy.step(loss=loss.item())
        return loss

    return examined


def with_nothing(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    return step


def floor(run: Watch, parameters: int) -> float:
    """Time to read once what one fully sampled step reads."""
    flow = run.run.flow()
    sizes = [row.stats.count for role in Role for row in flow.select(role) if row.stats is not None]
    tensors = [torch.ones(size) for size in sizes]
    buffer = torch.ones(parameters)

    def read() -> None:
        for tensor in tensors:
            torch.dot(tensor, tensor)
        buffer.copy_(buffer.clone())

    return min(seconds(read) for _ in range(5))


class Clock:
    """Time as one tool sees it: it stands still while the others make their steps."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self._spent: dict[str, float] = {}
        self._tool, self._began = "", read()

    def turn(self, tool: str) -> None:
        """From now on it is this tool's time."""
        now = self.read()
        self._spent[self._tool] = self._spent.get(self._tool, 0.0) + now - self._began
        self._tool, self._began = tool, now

    def now(self) -> float:
        """In place of :func:`time.perf_counter` inside evenflow's watcher."""
        return self._spent.get(self._tool, 0.0) + self.read() - self._began


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(run: Callable[[], object], read: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call."""
    began = read()
    run()
    return read() - began


def compare(name: str, rounds: int, peers: bool, read: Callable[[], float]) -> None:
    """Print the table of one net."""
    clock = Clock(read)
    for module in (guard, watcher):
        vars(module)["perf_counter"] = clock.now
    tools: dict[str, Callable[..., Step]] = {
        "bare": with_nothing,
        "bare again": with_nothing,
        "evenflow, budget 1 %": with_watch(0.01),
        "evenflow, everything": with_watch(None),
        "  without its recorder": with_watch(None, recorder=False),
        "plain hooks": with_hooks,
        "foreach norm": with_norm,
    }
    if peers:
        tools["wandb.watch(all)"] = with_wandb
        tools["torchmortem"] = with_torchmortem
    torch.manual_seed(0)
    original = NETS[name]()
    order = random.Random(0)
    with ExitStack() as stack:
        steps = {}
        for tool, make in tools.items():
            model, optimizer, step = training((copy.deepcopy(original[0]), *original[1:]))
            steps[tool] = make(stack, model, optimizer, step)
        times: dict[str, list[float]] = {tool: [] for tool in tools}
        for index in range(_WARM_UP + rounds):
            for tool in order.sample(list(tools), k=len(tools)):
                clock.turn(tool)
                spent = seconds(steps[tool], read)
                clock.turn("")
                if index >= _WARM_UP:
                    times[tool].append(spent)
        bare = times["bare"]
        print(f"\n{name}: {statistics.median(bare) * 1e3:.1f} ms a step")
        for tool in tools:
            ratios = [b / a for a, b in zip(bare, times[tool], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            mean = statistics.fmean(times[tool]) / statistics.fmean(bare)
            print(f"  {tool:24}median {middle:6.3f}  quartiles {low:.3f} to {high:.3f}  mean {mean:6.3f}")
        for tool in ("evenflow, budget 1 %", "evenflow, everything"):
            print(f"  {tool} says of itself: {steps[tool].run.cost}")  # type: ignore[attr-defined]
        everything: Watch = steps["evenflow, everything"].run  # type: ignore[attr-defined]
        everything.close()
        share = floor(everything, sum(p.numel() for p in original[0].parameters())) / statistics.median(bare)
        print(f"  floor of everything: {1 + share:.3f}")


def call_cost() -> None:
    """What an empty forward pre-hook and hook cost, each."""
    module = nn.Identity()
    x = torch.ones(1)
    repeats = 100_000

    def calls() -> None:
        for _ in range(repeats):
            module(x)

    without = min(seconds(calls) for _ in range(5))
    module.register_forward_hook(lambda module, args, output: None)
    first = min(seconds(calls) for _ in range(5))
    module.register_forward_pre_hook(lambda module, args: None)
    second = min(seconds(calls) for _ in range(5))
    for name, spent in (("first", first - without), ("second", second - first)):
        print(f"{name} hook: {spent / repeats * 1e6:.2f} µs a call")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--net", choices=list(NETS))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--call", action="store_true")
    arguments = parser.parse_args()
    if arguments.call:
        call_cost()
        return
    if arguments.peers:
        for package in ("wandb", "torchmortem"):
            if importlib.util.find_spec(package) is None:
                parser.error(f"--peers needs {package}: pip install {package}")
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {arguments.clock} clock, order shuffled")
    for name in [arguments.net] if arguments.net else NETS:
        compare(name, arguments.rounds, arguments.peers, CLOCKS[arguments.clock])


if __name__ == "__main__":
    main()
