"""How soon the command line answers: whole processes, from start to exit.

    python benchmarks/startup.py [--repeats 9]

The bare interpreter and ``import click`` stand beside it as floors. Aim: 0.3 s
for everything that needs no model.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time

AIM = 0.3

CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "floor: python -c pass": (["-c", "pass"], {}),
    "floor: import click": (["-c", "import click"], {}),
    "--version": (["-m", "evenflow", "--version"], {}),
    "--help": (["-m", "evenflow", "--help"], {}),
    "check --help": (["-m", "evenflow", "check", "--help"], {}),
    "explain": (["-m", "evenflow", "explain"], {}),
    "explain vanishing_gradient": (["-m", "evenflow", "explain", "vanishing_gradient"], {}),
    "complete a command": (
        ["-m", "evenflow"],
        {"_EVENFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "evenflow ch", "COMP_CWORD": "1"},
    ),
    "complete a word": (
        ["-m", "evenflow"],
        {"_EVENFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "evenflow explain van", "COMP_CWORD": "2"},
    ),
}


def seconds(arguments: list[str], variables: dict[str, str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **variables}, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in CASES}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(CASES), len(CASES)):
            times[name].append(seconds(*CASES[name]))
    print(f"{'seconds, whole process':<30} {'median':>7} {'least':>7} {'most':>7}")
    for name, taken in times.items():
        median = statistics.median(taken)
        late = "" if median <= AIM else f"  above the aim of {AIM}"
        print(f"{name:<30} {median:7.3f} {min(taken):7.3f} {max(taken):7.3f}{late}")


if __name__ == "__main__":
    main()
