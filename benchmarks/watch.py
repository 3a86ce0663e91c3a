"""What watching costs: a training step with it, over the bare step, beside other tools.

    python benchmarks/watch.py [--rounds 40] [--seconds 240] [--net mlp] [--compiled]
    python benchmarks/watch.py --call      what a call of a hook costs outside the hook
    python benchmarks/watch.py --constants from which size on a gradient is read as soon as it is complete

``--seconds`` ends a table early, after as many rounds as there was time for, but not
before the tenth. What is due once in many steps (the default budget, wandb's default) needs hundreds
of rounds for its mean: give only these, by ``--tool``, and more rounds.

Every tool trains a copy of its own of the same model. In each round every copy
makes one step, in random order, so a machine that slows down slows all alike, and
the ratio of a round to the bare step of that round is what is summarised: median
and quartiles. A tool that looks at some steps only is told by its mean, over the
mean of the bare steps; the first steps, in which all tools load what they need,
are left out.

plain hooks: one ``norm().item()`` in a forward hook, a backward hook and a
parameter hook for each module and parameter, as people write it by hand.
foreach norm: nothing but one batched norm of all gradients.

The governor's clock stands still for a watch while other tools make their steps;
else it would take their time for training and spend a share of that too.
``--clock cpu`` counts processor time, of all threads, in place of wall-clock time:
for machines that others use at the same time.

The floor is what "everything" has to read and write at least, and the time that PyTorch
takes for just that, by its cheapest operations, at the same moments of the same training,
so that what is in the cache then is in it now. As they are made: outputs, their gradients
and those of parameters, once. Around the optimizer's step, mostly from memory: gradients
after clipping and second moments once; weights once, with a copy written, which for the
update is read again beside the new ones. (evenflow compares and brings up to date the copy
it has, which is one read more.) Hooks are not in it, nor anything else of Python's. Of compiled models it
is the same reading, at the moments of an eager step, over the compiled bare step.

``--compiled``: the models are compiled with ``torch.compile(fullgraph=True)``. A tool that
breaks the graph is told by name, and so are plain hooks that are not called: PyTorch takes
what it compiled for the bare model, whatever hooks are on another one like it.

Other tools are taken in where they are installed: ``pip install torchmortem==0.1.1``, and
``pip install --no-deps wandb==0.31.0`` with what it asks for when it is imported (not
``cwevals``, which it does not need to run); it runs offline.
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
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.watch import guard, watch, watcher
from evenflow.watch.moments import Page, flat
from evenflow.watch.passes import main_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import Case, gpt2, mlp, resnet

NETS: dict[str, Callable[[], Case]] = {"mlp": mlp, "resnet": resnet, "gpt2": gpt2}
Step = Callable[[], Tensor]
_WARM_UP = 3
_FEWEST_ROUNDS = 10
_FLOOR_STEPS = 21


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


def with_watch(budget: float | None, *, flight_recorder: bool = True) -> Callable[..., Step]:
    def tool(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = stack.enter_context(
            watch(model, optimizer, path=f"{folder}/run", budget=budget, flight_recorder=flight_recorder)
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

    def look_back(module: nn.Module, into: Any, out: Any) -> None:
        look(out[0])

    leaves = [module for module in model.modules() if not list(module.children())]
    for module in leaves:
        module.register_forward_hook(lambda module, args, output: look(output))
        module.register_full_backward_hook(look_back)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.register_hook(look)

    def hooked() -> Tensor:
        seen.clear()
        loss = step()
        if len(seen) < len(leaves) + len(parameters):  # compiled code that was made for a model without hooks
            raise RuntimeError(f"its hooks on modules do not run: it saw {len(seen)} numbers in a step")
        return loss

    return hooked


def with_norm(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    """One batched norm of all gradients."""

    def look(*_: Any) -> None:
        torch.stack(
            torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
        ).norm().item()

    optimizer.register_step_pre_hook(look)
    return step


def with_wandb(log_freq: int) -> Callable[..., Step]:
    """``wandb.watch(log="all")``, offline."""

    def tool(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        if wandb.run is None:  # its watch works on one run of a process
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
            stack.callback(wandb.finish)
        run = wandb.run
        run.watch(model, log="all", log_freq=log_freq)

        def logged() -> Tensor:
            loss = step()
            run.log({"loss": loss.item()})
            return loss

        return logged

    return tool


def with_torchmortem(every: int | None) -> Callable[..., Step]:
    """Its own sampling, or all of its collectors at every so many steps."""

    def tool(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
        from torchmortem import Autopsy  # type: ignore[import-not-found, unused-ignore]
        from torchmortem.types import SamplingConfig  # type: ignore[import-not-found, unused-ignore]

        sampling = None if every is None else SamplingConfig(every, every)
        autopsy = Autopsy(model, optimizer=optimizer, sampling=sampling)
        autopsy.attach()
        stack.callback(autopsy.detach, is_complete=False)

        def examined() -> Tensor:
            loss = step()
            autopsy.step(loss=loss.item())
            return loss

        return examined

    return tool


def with_nothing(stack: ExitStack, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step) -> Step:
    return step


class Floor:
    """Nothing but what has to be read and written to see everything, and the time of just that.

    Args:
        clock: The time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes: Counter[str] = Counter()
        self._clock = clock
        self._nothing = min(seconds(lambda: None, clock) for _ in range(1000))
        self._output: Tensor | None = None

    def _take(self, what: str, run: Callable[..., object], *tensors: Tensor) -> None:
        """Run something on tensors, each of which it reads or writes once."""
        entries = [flat(tensor.detach()) for tensor in tensors]
        self.seconds[what] += seconds(partial(run, *entries), self._clock) - self._nothing
        self.bytes[what] += sum({x.data_ptr(): x.nbytes for x in entries}.values())

    def _read(self, what: str, tensor: Tensor) -> None:
        self._take(what, torch.dot, tensor, tensor)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Have a training with AdamW read all that."""
        parameters = list(model.parameters())
        copies = [torch.empty_like(parameter) for parameter in parameters]

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            tensor = main_tensor(output)
            if tensor is not None and tensor is not self._output:
                self._output = tensor
                self._read("outputs", tensor)
                tensor.register_hook(partial(self._read, "their gradients"))

        def made(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._read("gradients", parameter.grad)

        def before(*_: Any) -> None:
            for parameter, kept in zip(parameters, copies, strict=True):
                assert parameter.grad is not None
                self._read("gradients after clipping", parameter.grad)
                self._take("weights", Tensor.copy_, kept, parameter)

        def after(*_: Any) -> None:
            for parameter, kept in zip(parameters, copies, strict=True):
                self._take("updates", torch.dot, kept, parameter)
                self._read("second moments", optimizer.state[parameter]["exp_avg_sq"])

        for module in model.modules():
            module.register_forward_hook(leave)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(made)
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def floor(case: Case, clock: Callable[[], float], *, compiled: bool) -> str:
    """What a fully sampled step of a net has to move, and in what share of its bare time."""
    copied: Any = copy.deepcopy(case[0])
    runs: Any = torch.compile(copied, fullgraph=True) if compiled else copied
    _, _, bare = training((runs, *case[1:]))
    model, optimizer, step = training(copy.deepcopy(case))
    found = Floor(clock)
    found.attach(model, optimizer)
    shares: dict[str, list[float]] = {}
    for index in range(_WARM_UP + _FLOOR_STEPS):
        found.seconds.clear()
        found.bytes.clear()
        alone = seconds(bare, clock)
        step()
        if index >= _WARM_UP:
            for what, spent in {**found.seconds, "all": sum(found.seconds.values())}.items():
                shares.setdefault(what, []).append(spent / alone)
    *parts, total = ((what, statistics.median(one)) for what, one in shares.items())
    told = ", ".join(f"{what} {share:.3f} ({found.bytes[what] / 1e6:.0f} MB)" for what, share in parts)
    return f"{1 + total[1]:.3f}, {found.bytes.total() / 1e6:.0f} MB: {told}"


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


def tools(names: list[str]) -> dict[str, Callable[..., Step]]:
    """Name → what puts the tool on a model; says which are not installed."""
    known: dict[str, Callable[..., Step]] = {
        "bare": with_nothing,
        "bare again": with_nothing,
        "evenflow, budget 1 %": with_watch(0.01),
        "evenflow, everything": with_watch(None),
        "same, no flight recorder": with_watch(None, flight_recorder=False),
        "plain hooks": with_hooks,
        "foreach norm": with_norm,
    }
    peers = {
        "wandb": {"wandb.watch, default": with_wandb(1000), "wandb.watch, every step": with_wandb(1)},
        "torchmortem": {
            "torchmortem, default": with_torchmortem(None),
            "torchmortem, every step": with_torchmortem(1),
        },
    }
    for package, uses in peers.items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            print(f"{package} is left out: {error}")
        else:
            known |= uses
    return {name: tool for name, tool in known.items() if not names or name == "bare" or name in names}


def compare(
    name: str,
    rounds: int,
    *,
    limit: float,
    compiled: bool,
    read: Callable[[], float],
    names: list[str],
) -> None:
    """Print the table of one net, after so many rounds or, from the tenth on, seconds."""
    started = time.perf_counter()
    clock = Clock(read)
    for module in (guard, watcher):
        vars(module)["perf_counter"] = clock.now
    torch.manual_seed(0)
    original = NETS[name]()
    order = random.Random(0)
    with ExitStack() as stack:
        steps: dict[str, Step] = {}
        for tool, make in tools(names).items():
            copied: Any = copy.deepcopy(original[0])
            if compiled:
                copied = torch.compile(copied, fullgraph=True)
            model, optimizer, step = training((copied, *original[1:]))
            made = make(stack, model, optimizer, step)
            try:
                clock.turn(tool)
                made()
                steps[tool] = made
                print(f"  {tool}: ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
            except Exception as error:
                print(f"  {tool} fails: {type(error).__name__}: {str(error).splitlines()[0]}")
            clock.turn("")
        times: dict[str, list[float]] = {tool: [] for tool in steps}
        for index in range(_WARM_UP + rounds):
            if index >= _WARM_UP + _FEWEST_ROUNDS and time.perf_counter() - started > limit:
                break
            for tool in order.sample(list(steps), k=len(steps)):
                clock.turn(tool)
                spent = seconds(steps[tool], read)
                clock.turn("")
                if index >= _WARM_UP:
                    times[tool].append(spent)
        bare = times["bare"]
        print(
            f"\n{name}{', compiled' if compiled else ''}: {statistics.median(bare) * 1e3:.1f} ms a step, "
            f"{len(bare)} rounds"
        )
        for tool in steps:
            ratios = [b / a for a, b in zip(bare, times[tool], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            mean = statistics.fmean(times[tool]) / statistics.fmean(bare)
            print(f"  {tool:26}median {middle:6.3f}  quartiles {low:.3f} to {high:.3f}  mean {mean:6.3f}")
        for tool, step in steps.items():
            if hasattr(step, "run"):
                print(f"  {tool} says of itself: {step.run.cost}")
        if "evenflow, everything" in steps:
            print(f"  floor: {floor(original, read, compiled=compiled)}")


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


def constants(read: Callable[[], float]) -> None:
    """What decides from which size on a gradient is read at once: an entry read, and a call."""
    size, page = 1 << 15, Page()
    tensors = torch.ones(1 << 11, size).unbind()  # 256 MiB, more than caches hold

    def reading(which: Sequence[Tensor]) -> float:
        def run() -> None:
            for tensor in which:
                page.put(0, tensor)

        return min(seconds(run, read) for _ in range(5)) / (len(which) * size)

    warm, cold = reading(tensors[:1] * len(tensors)), reading(tensors)
    parameters: list[Tensor] = [nn.Parameter(torch.ones(1)) for _ in range(2000)]
    loss = torch.cat(parameters).sum()

    def backward() -> None:
        loss.backward(retain_graph=True)

    without = min(seconds(backward, read) for _ in range(9))
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda parameter: None)
    call = (min(seconds(backward, read) for _ in range(9)) - without) / len(parameters)
    print(f"an entry read from the cache {warm * 1e9:.2f} ns, from memory {cold * 1e9:.2f} ns")
    print(f"a call of a gradient's hook from the engine {call * 1e6:.2f} µs")
    print(f"which pays from {call / (cold - warm):.0f} entries on" if cold > warm else "which never pays")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for one net")
    parser.add_argument("--net", choices=list(NETS))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--tool", action="append", default=[], help="only these, by name, and bare")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--call", action="store_true")
    parser.add_argument("--constants", action="store_true")
    arguments = parser.parse_args()
    if arguments.constants:
        constants(CLOCKS[arguments.clock])
        return
    if arguments.call:
        call_cost()
        return
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # of plain hooks
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {arguments.clock} clock, order shuffled")
    for name in [arguments.net] if arguments.net else NETS:
        compare(
            name,
            arguments.rounds,
            limit=arguments.seconds,
            compiled=arguments.compiled,
            read=CLOCKS[arguments.clock],
            names=arguments.tool,
        )


if __name__ == "__main__":
    main()
