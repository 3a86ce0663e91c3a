"""Sweeps: every cell is there, in order, the same on any number of workers."""

from __future__ import annotations

import csv
import io
import math

import pytest
from click.testing import CliRunner

from evenflow.cli import main
from evenflow.cli.lab.grid import csv_text
from evenflow.lab.playground import FeedForward, SettingError
from evenflow.lab.sweep import Cell, sweep
from evenflow.parallel import Workers

OVER: dict[str, list[object]] = {"init": ["default", "he"], "depth": [3, 5]}
FIXED = {"width": 32}


def test_cells_come_in_order_with_their_numbers() -> None:
    cells = list(sweep("feed-forward", OVER, fixed=FIXED, seeds=2))
    assert [tuple(cell.settings.values()) for cell in cells] == [
        ("default", 3),
        ("default", 5),
        ("he", 3),
        ("he", 5),
    ]
    net = FeedForward(init="he", depth=5, width=32)
    assert cells[-1].expected == net.expected().total
    assert cells[-1].measured == (net.measured(0).total, net.measured(1).total)


def test_two_processes_give_the_same_numbers() -> None:
    pytest.importorskip("joblib", reason="the package joblib is not installed")
    alone = list(sweep("feed-forward", OVER, fixed=FIXED, seeds=1))
    assert list(sweep("feed-forward", OVER, fixed=FIXED, seeds=1, workers=Workers(jobs=2))) == alone


def test_theory_alone() -> None:
    (cell,) = sweep("feed-forward", {"depth": [5]}, seeds=0)
    assert cell.measured == ()
    assert math.isnan(cell.mean)


def test_mistakes_are_named_before_any_work() -> None:
    with pytest.raises(SettingError, match="no net 'resnet'"):
        list(sweep("resnet", OVER))
    with pytest.raises(SettingError, match="depth: expected 2 to 200, got 1"):
        list(sweep("feed-forward", {"depth": [5, 1]}))
    with pytest.raises(SettingError, match="at least one setting"):
        list(sweep("feed-forward", {}))


def test_csv_has_a_row_for_each_real_net() -> None:
    cells = [Cell({"depth": 3}, 0.5, (0.25, -math.inf)), Cell({"depth": 4}, None, ())]
    assert list(csv.reader(io.StringIO(csv_text(cells)))) == [
        ["depth", "seed", "measured", "expected"],
        ["3", "0", "0.25", "0.5"],
        ["3", "1", "-inf", "0.5"],
        ["4", "", "", ""],
    ]


def test_the_command_prints_the_grid(tmp_path: object) -> None:
    arguments = [
        "lab",
        "sweep",
        "--over",
        "init=he",
        "--over",
        "depth=3,5",
        "--set",
        "activation=relu",
        "--seeds",
        "1",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "depth 3" in result.output
    assert "(0)" in result.output  # He and ReLU: nothing is gained or lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--over", "depth"], "expected SETTING=VALUE"),
        (["--over", "depth=3", "--set", "init=he,default"], "for several of init use --over"),
        (["--over", "deep=3"], "There is no setting 'deep' here"),
        (["--over", "depth=3", "--address", "tcp://x"], "An address is for the backends dask and ray"),
        (["--over", "depth=3", "--jobs", "0"], "jobs is a number of workers"),
    ],
)
def test_the_command_names_mistakes(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["lab", "sweep", *arguments])
    assert result.exit_code == 2
    assert message in result.output
