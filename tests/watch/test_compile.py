"""Compiled models: probes in the graph without a break, numbers as in eager, no probes where none are due."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from evenflow.flow import Flow, Role, Run
from evenflow.watch import watch

# The compiler warns of what it does itself: with custom functions, and with inputs that are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Block(nn.Module):
    """In-place activations, a skip, a module called twice, a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))
        self.twice = nn.Tanh()

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.twice(x + self.inner(self.twice(x))), 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(4, 6), Block(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x))[0])


class Chain(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(4, 6), nn.ModuleList(blocks), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)[0]
        return self.head(x)


class Residual(nn.Module):
    """Convolutions between norms, beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.first(x)))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def made(compiled: Callable[[nn.Module], Any]) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = compiled(Net())
    return model, torch.optim.SGD(model.parameters(), 0.1)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int, micro: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        for _ in range(micro):
            x, y = torch.randn(5, 4, generator=generator), torch.randint(3, (5,), generator=generator)
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def seen(compiled: Callable[[nn.Module], Any], steps: int = 3, micro: int = 1) -> Run:
    model, optimizer = made(compiled)
    with watch(model, optimizer, budget=None) as run:
        train(model, optimizer, steps, micro)
    assert run.trouble is None
    return run.run


def aot(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def same(found: Flow, expected: Flow, relative: float) -> None:
    assert [(row.site, row.status, row.inputs, row.output_of, row.shape) for row in found] == [
        (row.site, row.status, row.inputs, row.output_of, row.shape) for row in expected
    ]
    for role in Role:
        stats = found.stats(role)
        for path, other in expected.stats(role).items():
            assert stats[path].count == other.count
            assert stats[path].mean_square == pytest.approx(other.mean_square, rel=relative)
            error = relative * math.sqrt(other.mean_square)
            assert stats[path].mean == pytest.approx(other.mean, rel=relative, abs=error)
            assert stats[path].abs_max == pytest.approx(other.abs_max, rel=relative)


@pytest.mark.parametrize("micro", [1, 2])
def test_the_same_rows_as_in_eager_without_a_graph_break(micro: int) -> None:
    expected = seen(lambda model: model, micro=micro)
    found = seen(aot, micro=micro)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 3, "the model, and its own hook before and after it"
    assert found.steps == expected.steps == (0, 1, 2)
    for (_, flow), (_, other) in zip(found.flows(), expected.flows(), strict=True):
        same(flow, other, relative=1e-6)
        assert [row.site.path for row in flow.chain()] == [row.site.path for row in other.chain()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_rows_under_inductor() -> None:
    expected = seen(lambda model: model)
    found = seen(lambda model: torch.compile(model, fullgraph=True))
    assert not counters["graph_break"]
    for (_, flow), (_, other) in zip(found.flows(), expected.flows(), strict=True):
        same(flow, other, relative=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_gradients_are_those_of_the_bare_model_under_inductor_to_rounding(mode: str) -> None:
    """It lays images out anew, and makes other loops where there are probes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 8, 8, generator=generator)

    def gradients(*, watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        compiled: Any = torch.compile(model, fullgraph=True, mode=mode)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        run = watch(compiled, optimizer, budget=None) if watched else None
        (compiled(images) * torch.linspace(-1, 1, 8)).sum().backward()
        optimizer.step()
        if run is not None:
            run.close()
            assert run.trouble is None
        assert not counters["graph_break"]
        return [p.grad for p in model.parameters() if p.grad is not None]

    bare = gradients(watched=False)
    for found, expected in zip(gradients(watched=True), bare, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_batches_of_many_sizes_in_one_graph() -> None:
    def run(compiled: Callable[[nn.Module], Any]) -> Run:
        model, optimizer = made(compiled)
        with watch(model, optimizer, budget=None) as run:
            for size in (5, 5, 3, 7, 7):
                model(torch.linspace(-1, 1, 4 * size).view(size, 4)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert run.trouble is None
        return run.run

    expected = run(lambda model: model)
    found = run(lambda model: torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True))
    assert counters["stats"]["unique_graphs"] == 3, "one of any size, and the hooks before and after it"
    for (_, flow), (_, other) in zip(found.flows(), expected.flows(), strict=True):
        same(flow, other, relative=1e-5)


def test_autocast() -> None:
    def run(compiled: Callable[[nn.Module], Any]) -> Run:
        model, optimizer = made(compiled)
        with watch(model, optimizer, budget=None) as run:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(torch.linspace(-1, 1, 20).view(5, 4)).float().square().sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        assert run.trouble is None
        return run.run

    expected, found = run(lambda model: model), run(aot)
    assert not counters["graph_break"]
    assert [row.dtype for row in found.flow(1)] == [row.dtype for row in expected.flow(1)]
    same(found.flow(1), expected.flow(1), relative=1e-6)


def test_losses_are_those_of_the_bare_model() -> None:
    model, optimizer = made(aot)
    bare = [*train(model, optimizer, 4), *model.parameters()]
    model, optimizer = made(aot)
    with watch(model, optimizer, budget=None):
        watched = [*train(model, optimizer, 4), *model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_steps_that_are_not_sampled_run_a_graph_without_probes() -> None:
    model, optimizer = made(aot)
    with watch(model, optimizer, budget=1e-9) as run:
        train(model, optimizer, 6)
    assert run.trouble is None
    assert run.cost.sampled == 1
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 4, "three with probes, one without"


def test_a_model_that_is_compiled_while_it_is_watched() -> None:
    model, optimizer = made(lambda model: model)
    with watch(model, optimizer, budget=None) as run:
        train(aot(model), optimizer, 2)
        with torch.no_grad():
            aot(model)(torch.ones(5, 4))
    assert run.trouble is None
    assert [row.site.path for row in run.run.flow(1).chain()] == ["first", "block.twice", "head"]
    assert not counters["graph_break"]


@pytest.mark.parametrize("alike", [False, True])
def test_graphs_that_were_made_before_it_was_watched_are_made_again(alike: bool) -> None:
    """PyTorch would take them, and another model's like it, whatever hooks there are."""
    model, optimizer = made(aot)
    other, others = made(aot) if alike else (model, optimizer)
    train(other, others, 1)
    with watch(model, optimizer, budget=None) as run:
        for _ in range(2):
            train(model, optimizer, 1)
            if alike:
                train(other, others, 1)
    assert run.trouble is None
    expected = seen(lambda model: model, steps=1).flow()
    for _, flow in run.run.flows():
        assert [(row.site, row.status) for row in flow] == [(row.site, row.status) for row in expected]


def test_a_setting_of_the_compiler_is_as_it_was_when_the_last_watch_has_ended() -> None:
    def skipped() -> bool:
        return bool(torch._dynamo.config.skip_nnmodule_hook_guards)

    assert skipped(), "PyTorch's own default"
    (first, its), (second, others) = made(aot), made(aot)
    with watch(first, its, budget=None):
        with watch(second, others, budget=None):
            assert not skipped()
        assert not skipped()
        train(first, its, 1)
    assert skipped()
    train(first, its, 2)
    with watch(first, its, budget=None) as run:
        train(first, its, 2)
    assert [row.site.path for row in run.run.flow(1).chain()] == ["first", "block.twice", "head"]


def test_a_module_that_compiles_itself() -> None:
    model, optimizer = made(lambda model: model)
    model.compile(fullgraph=True, backend="aot_eager")
    with watch(model, optimizer, budget=None) as run:
        train(model, optimizer, 2)
    assert run.trouble is None
    same(run.run.flow(1), seen(lambda model: model, steps=2).flow(1), relative=1e-6)


def test_many_watches_in_one_process() -> None:
    for _ in range(5):
        model, optimizer = made(aot)
        with watch(model, optimizer, budget=1e-9) as run:
            train(model, optimizer, 3)
        assert run.trouble is None
        assert [row.site.path for row in run.run.flow(0).chain()] == ["first", "block.twice", "head"]


def test_parts_that_are_compiled_by_themselves_are_told() -> None:
    torch.manual_seed(0)
    blocks = [Block() for _ in range(10)]
    for block in blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    model = Chain(blocks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, budget=None) as run:
        train(model, optimizer, 2)
    assert run.trouble is None
    assert list(run.run.flow(1).rms("activation")) == ["first", "head"]
    assert len(run.run.flow(1).rms("parameter_gradient")) == 44
    (event,) = [event for event in run.run.events if event.kind == "unseen"]
    assert event.text.startswith("blocks.0, blocks.1, blocks.2")
    assert event.text.endswith("Compile the whole model to see them.")
