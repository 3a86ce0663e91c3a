"""Who broke first? Faults put into training on purpose, and what the flight recorder says of them.

    python benchmarks/recorder.py [--faults 100] [--seed 0]
    python benchmarks/recorder.py --cost       what the recorder costs a healthy step

A fault is a NaN or an infinity in one entry of what one op gives back, at a random
op of a random step, forward or backward by the toss of a coin (see
``tests/watch/injection.py`` for what counts as an op, and for who truly ran it).
Five architectures take turns. A fault that nothing comes of (a NaN in an entry that
a ReLU masks) is drawn again, and counted apart.

Three questions, each with faults of its own:

* passing, in situ: the fault strikes once; every step is watched in full. Only
  sentinels can know.
* lasting, by replay: it strikes whenever the op is run in that step, as real ones
  do; no sentinel stands anywhere. Only the replay can know.
* passing, unwatched: it strikes once, and no sentinel stands anywhere. Nobody can
  know; counted is how often the recorder names the right one even so, and how
  often it says that it does not know or names several, with the right one among
  them.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from evenflow.watch import watch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.watch.programs import ALL
from tests.watch.trials import Trial, draw, sites, strike

QUESTIONS = {  # lasting, sentinels
    "passing, in situ": (False, True),
    "lasting, by replay": (True, False),
    "passing, unwatched": (False, False),
}


def ask(name: str, faults: int, seed: int) -> list[Trial]:
    """Strike, until so many faults had an effect."""
    lasting, sentinels = QUESTIONS[name]
    rng = random.Random(seed)
    known = {net: sites(build) for net, build in ALL.items()}
    trials: list[Trial] = []
    right, nothing = Counter[str](), 0
    while len(trials) < faults:
        net = list(ALL)[len(trials) % len(ALL)]
        trial = strike(
            ALL[net],
            draw(rng, known[net]),
            rng.choice([math.nan, math.inf, -math.inf]),
            step=rng.randrange(1, 6),
            lasting=lasting,
            sentinels=sentinels,
        )
        if trial.flight is None:
            nothing += 1
            continue
        trials.append(trial)
        right[net] += trial.right
        if not trial.right and sentinels | lasting:
            print(f"  wrong: {net}, {trial.site}: {trial.flight.message}", file=sys.stderr)
    each = ", ".join(f"{net} {right[net]}" for net in ALL)
    print(f"{name:20} right module {sum(t.right for t in trials):3} of {faults} ({each}), "
          f"among those named {sum(t.bounded for t in trials)}, "
          f"backward {sum(t.site.backward for t in trials)}, without effect {nothing}")  # fmt: skip
    return trials


def cost(rounds: int) -> None:
    """A healthy step with the recorder alone on top of watching, over one without it."""
    for net, build in ALL.items():
        spent = {}
        for recorder in (False, True):
            program = build()
            with watch(program.models, program.optimizers, budget=None, flight_recorder=recorder):
                for _ in range(5):
                    program.step()
                began = time.process_time()
                for _ in range(rounds):
                    program.step()
                spent[recorder] = (time.process_time() - began) / rounds
        print(
            f"{net:12} everything {spent[False] * 1e3:6.2f} ms a step, with recorder {spent[True] * 1e3:6.2f}"
        )


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cost:
        cost(50)
        return
    for name in QUESTIONS:
        ask(name, arguments.faults, arguments.seed)


if __name__ == "__main__":
    main()
