"""How close predict comes: every family, against the mean log of several real seeds.

    python benchmarks/predict.py                    all families, 4 seeds
    python benchmarks/predict.py --only GPT-2 LSTM  those whose names contain one of the words
    python benchmarks/predict.py --json FILE --jobs 2
                                                    a line for each family as it ends, two at a time;
                                                    with --resume, what FILE has is not run again
    python benchmarks/predict.py --json FILE --show what FILE has
    python benchmarks/predict.py --more 32          that many seeds for families that are out with fewer
    python benchmarks/predict.py --worst 5          name the tensors that are furthest off
    python benchmarks/predict.py --costs            time and memory instead
    python benchmarks/predict.py --classes          how many transformers classes it follows

One line a family, for gradients of parameters and at activations: |Δlog10 RMS| per
tensor, median / 95th percentile, beside the standard deviation of single seeds, the
half-width of the interval that predict states, and the share of the single seeds that
lie in it (all decades, medians over tensors). Structural zeros are counted apart. Deep
nets have the slope of gradients at linear outputs too, in decades over the whole depth.

    in      within the bar: .03 / .10, 2 % of a slope
    cover   outside it, where seeds differ by more: of single seeds (standard deviation
            above .03) at least 95 % lie in the stated interval; a slope differs from the
            truth by less than the truth's own 95 % interval
    OUT     neither

The mean of 4 seeds is itself off by half the standard deviation of one; --more tells a
prediction that is wrong from a truth that is not known. The last column counts the seeds.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.predict_classes import show, summary, sweep
from benchmarks.predict_costs import costs
from benchmarks.predict_ledger import cases, scores, written
from benchmarks.predict_score import Errors, Score

HEADINGS = (
    f"{'family':26s} {'parameters':>12s} {'seeds':>5s} {'±':>4s} {'':>4s}      "
    f" | {'activations':>12s} {'seeds':>5s} {'±':>4s} {'':>4s}      "
    " | slope: predicted, measured  off    | missing zeros    s seeds"
)


def line(found: Score) -> str:
    """One family."""
    slope = " " * 34
    if found.slope is not None:
        one = found.slope
        slope = f"{one.predicted:8.3f} {one.measured:8.3f} ±{one.uncertainty:.3f} {one.verdict:5s}".ljust(34)
    parts = [_part(found.parameters), _part(found.activations), slope]
    counts = f"{len(found.missing):7d} {len(found.zeros):5d} {found.seconds:6.1f} {found.seeds:5d}"
    return " | ".join([f"{found.name:26s} {parts[0]}", *parts[1:], counts])


def _part(found: Errors) -> str:
    return (
        f"{found.median:.3f}/{found.tail:.3f} {found.scatter:6.3f} {found.stated:.2f} "
        f"{found.covered:4.0%} {found.verdict:5s}"
    )


def worst(found: Score, count: int) -> Iterator[str]:
    """Tensors that are furthest off."""
    for part in (found.parameters, found.activations):
        order = sorted(part.errors.items(), key=lambda each: -abs(each[1]))[:count]
        if order:
            yield "      " + ", ".join(f"{label} {error:+.3f}" for label, error in order)
    if found.missing and count:
        yield "      missing: " + ", ".join(found.missing[:count])


def tally(found: list[Score]) -> str:
    """How many families stand where."""
    rows = []
    for name, verdicts in (
        ("parameters", [one.parameters.verdict for one in found]),
        ("activations", [one.activations.verdict for one in found]),
        ("slopes", [one.slope.verdict for one in found if one.slope is not None]),
    ):
        count = Counter(verdicts)
        rows.append(f"{name}: {count['in']} in, {count['cover']} cover, {count['OUT']} OUT")
    out = [one.name for one in found if "OUT" in one.verdicts]
    return f"\n{len(found)} families. {'; '.join(rows)}\nout: {', '.join(out) or 'none'}"


def accuracy(asked: argparse.Namespace, names: list[str]) -> list[str]:
    """Print a line for each family; return the names of those that failed."""
    known = written(asked.json) if asked.json is not None and (asked.resume or asked.show) else {}
    left = [] if asked.show else [name for name in names if name not in known]
    print(HEADINGS)
    done, failed = [known[name] for name in names if name in known], []
    for one in done:
        print(line(one), *worst(one, asked.worst), sep="\n")
    for name, found in scores(left, asked.seeds, asked.more, asked.jobs, asked.json):
        if isinstance(found, str):
            failed.append(name)
            print(f"{name:26s} failed: {found}", flush=True)
            continue
        done.append(found)
        print(
            line(found),
            *worst(found, asked.worst),
            *(f"      {n}" for n in found.notes),
            sep="\n",
            flush=True,
        )
    print(tally(done))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--seeds", type=int, default=4, metavar="N")
    parser.add_argument(
        "--more", type=int, default=0, metavar="N", help="so many seeds where a family is out"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="in so many processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a line there as each family ends")
    parser.add_argument("--resume", action="store_true", help="leave out what the --json file has already")
    parser.add_argument("--show", action="store_true", help="print what the --json file has, measure nothing")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="name so many tensors a family")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--classes", action="store_true")
    asked = parser.parse_args()
    if asked.costs:
        costs(asked.only)
        return
    if asked.classes:
        print(summary(sweep(asked.only, show)))
        return
    if (asked.resume or asked.show) and asked.json is None:
        parser.error("--resume and --show want the file of before: --json FILE")
    if asked.json is not None and asked.json.exists() and not (asked.resume or asked.show):
        parser.error(f"{asked.json} is there already: add --resume to go on with it, or remove it")
    if asked.seeds < 2:
        parser.error("--seeds wants two at least: one draw does not tell how far draws differ")
    names = [n for n in cases() if not asked.only or any(w.lower() in n.lower() for w in asked.only)]
    if not names:
        parser.error(f"no family's name contains {' or '.join(asked.only)}; there are: {', '.join(cases())}")
    if failed := accuracy(asked, names):
        sys.exit(f"{len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
