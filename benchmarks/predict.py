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
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.predict_classes import show, summary, sweep
from benchmarks.predict_costs import costs
from benchmarks.predict_models import families
from benchmarks.predict_score import ROLES, score


def accuracy(words: list[str], seeds: int) -> list[str]:
    """Print a line for each family; return the names of those that failed."""
    failed = []
    print(
        f"{'family':28s} {'parameters':>13s} {'seeds':>6s} {'in':>5s}"
        f" | {'activations':>13s} {'seeds':>6s} {'in':>5s} | missing zeros seconds"
    )
    for case in families():
        if words and not any(word.lower() in case.name.lower() for word in words):
            continue
        try:
            found = score(case, seeds)
        except Exception:  # the other families are measured all the same
            failed.append(case.name)
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
    return failed


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
        costs(chosen.only)
    elif chosen.classes:
        coverage(chosen.only)
    elif failed := accuracy(chosen.only, chosen.seeds):
        sys.exit(f"{len(failed)} failed: {', '.join(failed)}")
