"""Four famous failures, each repaired by the patch that fix finds for it.

    python benchmarks/recover.py                     all
    python benchmarks/recover.py --only gan --json FILE

* adding: the adding problem over 150 steps, a plain tanh RNN; solved is a squared error
  below .01, and who remembers nothing has .167.
* copy: copy memory over 100 steps, likewise; recovered is a tenth of the loss of who
  remembers nothing.
* gan: a generator whose discriminator is sure of itself from the start, and whose
  saturating loss then teaches nothing; recovered when its points lie near the data.
* transformer: 48 post-LN blocks without warm-up on a language of nested brackets;
  trained when it closes a tenth of the gap from token frequencies to what can be known.

Printed are the figure before and after whole trainings, with and without the patch, and
what the patch does. check looks at the first steps only.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import evenflow as ef
from evenflow.fix.course import train
from evenflow.lab.networks import Discriminator, Generator, RecurrentNet, Transformer
from evenflow.lab.networks.adversarial import discriminator_loss, generator_loss
from evenflow.lab.seeds import generator
from evenflow.lab.tasks import Adding, CopyMemory, Grammar, Ring, Task
from evenflow.lab.tasks.grammar import VOCABULARY
from evenflow.lab.training import fresh_loss

ROUND = 50
"""Batches of a round; each round has other ones."""
NOISE = 8
FAR = 10.0
"""From the generator's first points to the data, so that a discriminator tells them apart at once."""


@dataclass(frozen=True)
class Piece:
    """A failure.

    Attributes:
        program: It, as a program; its metric is told.
        figure: What is told of the trained model, by name.
        recovered: Whether that figure is good enough.
        trial: Steps of a trial.
        watched: Steps that check looks at.
    """

    program: ef.Program
    figure: tuple[str, Callable[[float], float]]
    recovered: Callable[[float], bool]
    trial: int
    watched: int = 30


def _batches(task: Task, size: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        source = generator(seed)
        return (task.batch(size, source) for _ in range(ROUND))

    return batches


def _recurrent(name: str, task: Task, net: dict[str, Any], steps: int, goal: float, trial: int) -> Piece:
    program = ef.Program(
        build=lambda seed: RecurrentNet(cell="rnn", **net),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        batches=_batches(task, 32),
        loss=lambda model, batch: task.loss(model(batch[0]), batch[1]),
        steps=steps,
        metric=lambda model: -fresh_loss(model, task, batch=256),
        name=name,
    )
    return Piece(
        program, (f"loss (knows nothing: {task.baseline:.3f})", lambda x: -x), lambda x: -x <= goal, trial
    )


def adding() -> Piece:
    """Two numbers of 150 to be added."""
    return _recurrent("adding", Adding(150), {"inputs": 2, "hidden": 64, "outputs": 1}, 1500, 0.01, 800)


def copy() -> Piece:
    """Ten symbols to be kept for 100 steps."""
    task = CopyMemory(100)
    net = {"inputs": 10, "hidden": 64, "outputs": 9, "every_step": True}
    return _recurrent("copy", task, net, 1500, task.baseline / 10, 300)


def gan() -> Piece:
    """A starved generator."""
    ring = Ring(modes=4, radius=1.5, std=0.15)
    angle = torch.arange(32) * math.pi / 32
    axes = torch.stack([angle.cos(), angle.sin()])

    def data(size: int, source: torch.Generator) -> Tensor:
        return ring.sample(size, source) + torch.tensor([FAR, 0.0])

    real = data(1024, generator(5))

    def apart(points: Tensor) -> float:
        """Sliced Wasserstein distance to the data."""
        one, other = (x @ axes for x in (points, real))
        return float((one.sort(dim=0).values - other.sort(dim=0).values).abs().mean())

    def build(seed: int) -> dict[str, nn.Module]:
        return {
            "discriminator": Discriminator(width=64, depth=3),
            "generator": Generator(noise=NOISE, width=64, depth=3),
        }

    def optimizers(models: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        rates = {"discriminator": 1e-2, "generator": 2e-4}
        return {
            role: torch.optim.Adam(models[role].parameters(), rates[role], betas=(0.5, 0.99))
            for role in models
        }

    def batches(seed: int) -> Iterator[Tensor]:
        source = generator(seed)
        return (data(128, source) for _ in range(ROUND))

    def judged(models: dict[str, nn.Module], points: Tensor) -> Tensor:
        fake = models["generator"](torch.randn(len(points), NOISE)).detach()
        return discriminator_loss(
            "saturating", models["discriminator"](points), models["discriminator"](fake)
        )

    def taught(models: dict[str, nn.Module], points: Tensor) -> Tensor:
        return generator_loss(
            "saturating", models["discriminator"](models["generator"](torch.randn(len(points), NOISE)))
        )

    @torch.no_grad()
    def metric(models: dict[str, nn.Module]) -> float:
        points = models["generator"](torch.randn(1024, NOISE, generator=generator(6)))
        return 1.0 - apart(points) / apart(torch.zeros(1024, 2))

    program = ef.Program(
        build=build,
        optimizer=optimizers,
        batches=batches,
        loss={"discriminator": judged, "generator": taught},
        steps=800,
        metric=metric,
        name="gan",
    )
    return Piece(program, ("share of the way to the data", lambda x: x), lambda x: x >= 0.8, 80, 300)


def transformer() -> Piece:
    """48 post-LN blocks, Adam at its full rate from the first step."""
    task = Grammar(16)
    gap = task.baseline - task.entropy_rate

    def build(seed: int) -> nn.Module:
        return Transformer(
            vocabulary=VOCABULARY, longest=16, width=32, heads=2, blocks=48, arrangement="post"
        )

    program = ef.Program(
        build=build,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=3e-3),
        batches=_batches(task, 16),
        loss=lambda model, batch: task.loss(model(batch[0]), batch[1]),
        steps=300,
        metric=lambda model: (task.baseline - fresh_loss(model, task, batch=128)) / gap,
        name="transformer",
    )
    return Piece(program, ("share of the gap closed", lambda x: x), lambda x: x >= 0.1, 75, 4)


PIECES = {"adding": adding, "copy": copy, "gan": gan, "transformer": transformer}


def main() -> None:
    """Fix each, train it in full with and without the patch, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(PIECES), default=list(PIECES))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console, shown, told = Console(), Console(stderr=True), []
    for name in chosen.only:
        piece = PIECES[name]()
        program, (figure, told_as) = piece.program, piece.figure
        began = time.process_time()
        report = ef.check(replace(program, steps=piece.watched), confirm=False)
        outcome = ef.fix(
            program,
            report=report,
            steps=piece.trial,
            insist=True,  # that it fails is known: depth of post-LN alone is a note
            track=lambda title, items, total: track(items, title, total, console=shown),
        )
        searched = time.process_time() - began
        console.print(f"[bold]{name}[/bold], {program.steps} steps: {figure}; search {searched:.0f} s")
        for trial in outcome.trials:
            console.print(f"  {trial.verdict}: {trial.effect:+.4f} {trial.interval} {trial.patch.describe()}")
        if not outcome.patches:
            console.print("  fix found no patch" + (": check calls it healthy" if report.healthy else ""))
            continue
        patch = outcome.patches[0].patch
        courses = [train(one, one.steps) for one in (program, patch.program(program))]
        before, after = (-math.inf if one.metric is None else one.metric for one in courses)
        verdict = "recovered" if piece.recovered(after) else "not recovered"
        console.print(f"  {told_as(before):.4f} → {told_as(after):.4f}, {verdict}: {patch.describe()}")
        told.append(
            {
                "name": name,
                "steps": program.steps,
                "before": told_as(before),
                "after": told_as(after),
                "recovered": piece.recovered(after),
                "patch": json.loads(patch.to_json()),
                "search_seconds": searched,
                "training_seconds": courses[0].seconds,
            }
        )
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
