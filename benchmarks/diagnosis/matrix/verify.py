"""Are the pairs what they are claimed to be? Each is trained bare, and compared with the frozen facts."""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from typing import Any

import torch
from benchmarks.diagnosis.matrix import FACTS, draw, facts_of, known


def _written(found: dict[str, dict[str, Any]], names: list[str]) -> None:
    rows = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in names if name in found]
    FACTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only pairs whose name contains one of them")
    parser.add_argument("--write", action="store_true", help="draw, and freeze what is measured of new pairs")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="in so many processes")
    asked = parser.parse_args()
    before = known()
    every = draw() if asked.write else list(before)
    chosen = [name for name in every if not asked.words or any(word in name for word in asked.words)]
    if asked.write:
        chosen = [name for name in chosen if name not in before]
    wrong = 0
    with get_context("spawn").Pool(asked.jobs, torch.set_num_threads, (1,)) as pool:
        for name, facts in pool.imap_unordered(facts_of, chosen):
            same = all(before.get(name, {}).get(key) == facts[key] for key in ("kind", "symptoms"))
            wrong += not (same or asked.write)
            print("ok" if same or asked.write else "!!", name, facts, flush=True)
            if asked.write:
                before[name] = facts
                _written(before, every)
    if wrong:
        raise SystemExit(f"{wrong} pairs are not as they were")


if __name__ == "__main__":
    main()
