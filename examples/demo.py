"""The demo: the three nets of digits.py through the command line, and what came out beside the theory.

For each net it runs ``evenflow check`` as a user would, leaves an HTML report
and JSON in out/, and reads from the JSON how much smaller the gradient is at the
first of the 20 layers than at the last. It fails if a finding differs from
the one expected, or that figure by more than 0.3 decades from mean-field theory.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evenflow.theory import chain_profile

OUT = Path("out")
DEPTH, WIDTH = 20, 128
TOLERANCE = 0.3
"""Decades. One net scatters by 0.12 around the mean over nets (theory's ``log10_std``)."""

FOUND = ("vanishing_gradient", "saturating_activation")


@dataclass(frozen=True)
class Case:
    """One net, and what its check should show.

    Attributes:
        net: Name of the function in digits.py.
        first: Path of the first of the layers that are compared.
        last: Path of the last one.
        expected: Symptom and best cause; None: no finding.
        theory: log10 of the gradient norm at ``first`` over that at ``last``, for the
            mean over random nets; None where chain theory does not apply.
    """

    net: str
    first: str
    last: str
    expected: tuple[str, str] | None
    theory: float | None


def cases() -> tuple[Case, ...]:
    """Both sigmoid nets are chains of Linear 0, 2 … 38, then the head."""
    default = chain_profile("sigmoid", depth=DEPTH, width=WIDTH, sigma_w2=1 / 3, sigma_b2=1 / (3 * WIDTH))
    glorot = chain_profile("sigmoid", depth=DEPTH, width=WIDTH, sigma_w2=1.0)
    return (
        Case("sigmoid_net", "0", "38", FOUND, default.log10_ratio),
        Case("glorot_net", "0", "38", FOUND, glorot.log10_ratio),
        Case("residual_net", "0", "10.second", None, None),
    )


def checked(case: Case) -> dict[str, Any]:
    """Run the command line on a net; the report as read from its JSON."""
    page, data = OUT / f"{case.net}.html", OUT / f"{case.net}.json"
    command = ["evenflow", "check", f"examples/digits.py:{case.net}", "--html", str(page)]
    command += ["--json", str(data), "--force"]
    print(f"\n$ {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"The command failed with exit code {done.returncode}.")
    report: dict[str, Any] = json.loads(data.read_text(encoding="utf-8"))
    return report


def found(report: dict[str, Any]) -> tuple[str, str] | None:
    """Symptom and best cause of the worst finding."""
    findings = report["findings"]
    return (findings[0]["symptom"], findings[0]["causes"][0]["name"]) if findings else None


def log10_ratio(report: dict[str, Any], case: Case) -> float:
    """log10 of the gradient norm at the first layer's output over that at the last's, equally wide."""
    rms = {layer["place"]: layer["activation_gradient"]["rms"] for layer in report["flow"]["layers"]}
    return math.log10(rms[case.first] / rms[case.last])


def main() -> None:
    """Check every net, print the table, and exit with 1 if anything differs from what is expected."""
    table = Table(box=None, pad_edge=False)
    for column in ("net", "finding", "best cause", "measured", "theory", ""):
        table.add_column(column, justify="right" if column in ("measured", "theory") else "left")
    failed = False
    for case in cases():
        report = checked(case)
        outcome, ratio = found(report), log10_ratio(report, case)
        fits = outcome == case.expected and abs(ratio - (case.theory or ratio)) <= TOLERANCE
        failed |= not fits
        symptom, cause = outcome or ("none", "")
        theory = "" if case.theory is None else f"{case.theory:.2f}"
        table.add_row(case.net, symptom, cause, f"{ratio:.2f}", theory, "ok" if fits else "NO")
    console = Console()
    console.print(
        "\nlog10 of the gradient at the first of 20 layers over that at the last:\n", highlight=False
    )
    console.print(table)
    print()
    for case in cases():
        console.print(f"Open {OUT / case.net}.html", highlight=False)
    sys.exit(failed)


if __name__ == "__main__":
    main()
