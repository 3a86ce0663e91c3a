"""Plain depth made trainable: what fix makes of nets of 1 000 layers without skips or norms.

    python benchmarks/depth.py                      tanh and ReLU, 1 000 layers, on handwritten digits
    python benchmarks/depth.py --depth 10000 --recipe
    python benchmarks/depth.py --act tanh --depth 200 --json FILE

Each net has PyTorch's own initialisation and Adam at its usual 1e-3, and is at chance
for as long as one cares to train. ``fix`` gets it as a program; its first patch is then
trained in full, and accuracy is measured on digits that were kept out of training.
check looks at the first --watched steps rather than the whole training, for a net
that passes no signal shows that at once, and watching 1 000 layers is slow. fix may
not insert skips or norms here, for the net is to stay plain.

With --recipe nothing is searched: a net of 10 000 layers gets what fix found for
shallower ones (TAT, orthogonal weights, a learning rate that fits the depth), and the
curve of its training is printed. A step costs about a second and a half per 10 000
layers of 32 units.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import evenflow as ef
from evenflow.fix.course import train
from evenflow.lab.networks import DeepNet
from evenflow.surgery import Patch, Reinitialise, SetLearningRate, ShapeActivation

BATCH = 64
RATE = 1e-3


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels and labels for training, pixels and labels for testing (a fifth, of every class alike)."""
    pixels, labels = load_digits(return_X_y=True)
    ours, theirs, known, hidden = train_test_split(
        pixels, labels, test_size=0.2, random_state=0, stratify=labels
    )
    mean, std = ours.mean(), ours.std()
    x, y = (torch.tensor((part - mean) / std, dtype=torch.float32) for part in (ours, theirs))
    return x, torch.tensor(known), y, torch.tensor(hidden)


def program(act: str, depth: int, width: int, steps: int) -> ef.Program:
    """A plain chain of linear layers and activations on digits."""
    x, labels, fresh, hidden = digits()

    def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return [(x[part], labels[part]) for part in order.split(BATCH)[:-1]]

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(fresh).argmax(1) == hidden).double().mean())

    return ef.Program(
        build=lambda seed: DeepNet(inputs=64, width=width, depth=depth, outputs=10, act=act),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=RATE, fused=True),
        batches=batches,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        steps=steps,
        metric=accuracy,
        name=f"{act}, {depth} layers",
    )


def main() -> None:
    """Fix, train in full, and print before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--act", nargs="*", default=["tanh", "relu"])
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--watched", type=int, default=4, help="steps that check trains")
    parser.add_argument("--trial", type=int, default=30, help="steps of a trial")
    parser.add_argument("--recipe", action="store_true", help="train with what was found, without a search")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console, told = Console(), []
    shown = Console(stderr=True)

    def say(title: str) -> None:
        shown.print(f"{time.process_time():6.0f} s  {title}", highlight=False)

    def followed(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
        say(f"{title}, {total}")
        return items

    for act in chosen.act:
        ill = program(act, chosen.depth, chosen.width, chosen.steps)
        began = time.process_time()
        if chosen.recipe:
            rate = float(f"{1.0 / (chosen.depth * chosen.width):.1e}")
            patch = Patch([ShapeActivation("tat"), Reinitialise("orthogonal"), SetLearningRate(lr=rate)])
        else:
            say(f"check of {ill.name}")
            report = ef.check(replace(ill, steps=chosen.watched), confirm=False)
            outcome = ef.fix(
                ill,
                report=report,
                steps=chosen.trial,
                ignore=("skip", "normalise"),  # the net is to stay plain
                track=followed,
            )
            for trial in outcome.trials:
                console.print(f"  {trial.effect:+.3f} {trial.interval} {trial.patch.describe()}")
            if not outcome.patches:
                console.print(f"{ill.name}: fix found no patch.")
                continue
            patch = outcome.patches[0].patch
        searched = time.process_time() - began
        say("whole trainings")
        after = train(patch.program(ill), chosen.steps)
        before = None if chosen.recipe else train(ill, chosen.steps).metric
        was = "not trained" if before is None else f"{before:.3f}"
        console.print(f"{ill.name}, width {chosen.width}, {chosen.steps} steps, test accuracy")
        console.print(f"  before {was}, after {after.metric:.3f}: {patch.describe()}")
        every = max(1, chosen.steps // 10)
        console.print(f"  loss every {every} steps: {', '.join(f'{x:.3f}' for x in after.losses[::every])}")
        console.print(f"  search {searched:.0f} s, training {after.seconds:.0f} s")
        told.append(
            {
                "program": ill.name,
                "width": chosen.width,
                "steps": chosen.steps,
                "before": before,
                "after": after.metric,
                "patch": json.loads(patch.to_json()),
                "losses": after.losses,
                "search_seconds": searched,
                "seconds": after.seconds,
            }
        )
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(told, indent=1))
    sys.exit(0 if len(told) == len(chosen.act) else 1)


if __name__ == "__main__":
    main()
