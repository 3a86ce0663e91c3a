"""``evenflow lab`` as a user meets it: the list, the verdicts, the files and the page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
from click.testing import CliRunner, Result

import evenflow
import evenflow.lab
from evenflow.cli import main
from evenflow.cli.lab import charts
from evenflow.cli.lab.page import render_page
from evenflow.errors import MissingPackageError
from evenflow.lab import Comparison, Outcome, experiments, run
from evenflow.lab.experiment import Experiment, Track, silently
from evenflow.lab.picture import Axis, Curve, HeatMap, Lines, Origin
from evenflow.lab.verdict import near


@final
@dataclass(frozen=True)
class Sample(Experiment):
    """Draws one of everything."""

    place = 1
    title = "A <sample>"
    question = "Does it show?"
    expectation = "It does."
    quick: ClassVar = {"offset": 0.0}

    offset: float = 9.0

    def run(self, track: Track = silently) -> Outcome:
        found = tuple(track([self.offset + 0.1, self.offset - 0.1, self.offset]))
        curves = (
            Curve("c", (1.0, 2.0), (-1.0, None), low=(-2.0, -3.0), high=(0.0, -1.0)),
            Curve("c", (1.0, 2.0), (-1.0, -math.inf), Origin.EXPECTED),
        )
        lines = Lines(
            "lines", "Some lines", "Read them.", Axis("x", log=True), Axis("y", decades=True), curves
        )
        grid = HeatMap(
            "map",
            "A map",
            "See.",
            Axis("x"),
            Axis("y"),
            "v",
            (0.0, 1.0),
            (0.0, 2.0),
            ((1.0, 2.0),) * 2,
            curves[:1],
        )
        return Outcome(
            (Comparison("number", near(0.0, 1.0, "0", "s"), found),), (lines, grid), ("Mind this.",)
        )


@pytest.fixture
def only_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evenflow.lab, "experiments", lambda: (Sample,))
    monkeypatch.setattr(evenflow.lab, "experiment", lambda _name: Sample)


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["lab", *args])


def test_list_shows_every_experiment() -> None:
    output = _run("list").output
    assert all(kind.name() in output for kind in experiments())


@pytest.mark.usefixtures("only_sample")
def test_run_prints_verdicts_and_writes_files(tmp_path: Path) -> None:
    page, numbers = tmp_path / "sub" / "lab.html", tmp_path / "lab.json"
    result = _run("run", "--all", "--quick", "--html", str(page), "--json", str(numbers))
    assert result.exit_code == 0, result.output
    assert "✓ agrees  number" in result.output
    assert "0.0 ± 1.0  0.00 ± 0.25" in result.output
    assert "Note: Mind this." in result.output
    assert "1 experiment: 1 agrees. 0 s." in result.output
    assert json.loads(numbers.read_text())["experiments"][0]["verdict"] == "agrees"
    assert "A &lt;sample&gt;" in page.read_text()
    again = _run("run", "--all", "--quick", "--json", str(numbers))
    assert again.exit_code == 2
    assert "exists. Name another file, or overwrite it with --force." in again.output
    assert _run("run", "--all", "--quick", "--json", str(numbers), "--force").exit_code == 0


@pytest.mark.usefixtures("only_sample")
def test_out_leaves_a_page_numbers_and_a_run(tmp_path: Path) -> None:
    out = tmp_path / "results"
    result = _run("run", "sample", "--quick", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["lab.html", "lab.json", Sample.name()]
    run = evenflow.open_run(out / Sample.name())
    assert run.scalars["number"].values.tolist() == [0.1, -0.1, 0.0]
    assert run.scalars["number"].steps.tolist() == [0, 1, 2]
    (event,) = run.events
    assert (event.kind, event.text) == ("verdict", "agrees: number: expected 0.0 ± 1.0, measured 0.00 ± 0.25")
    assert run.metadata["state"] == "finished"
    (entry,) = json.loads((out / "lab.json").read_text())["experiments"]
    assert run.metadata["experiment"] == entry
    again = _run("run", "sample", "--quick", "--out", str(out))
    assert again.exit_code == 2
    assert "exists. Name another file, or overwrite it with --force." in again.output
    assert _run("run", "sample", "--quick", "--out", str(out), "--force").exit_code == 0


@pytest.mark.usefixtures("only_sample")
def test_times_are_added_to_those_that_are_known(tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    times.write_text('{"other": {"full": {"seconds": 1.0}}}')
    _run("run", "sample", "--times", str(times))
    _run("run", "sample", "--quick", "--times", str(times))
    known = json.loads(times.read_text())
    assert known["other"] == {"full": {"seconds": 1.0}}
    assert known[Sample.name()]["full"]["verdict"] == "disagrees"
    assert known[Sample.name()]["quick"]["verdict"] == "agrees"
    assert 0.0 <= known[Sample.name()]["quick"]["processor_seconds"] < 60.0
    times.write_text("no JSON")
    broken = _run("run", "sample", "--times", str(times))
    assert "is no file of times" in broken.output


@pytest.mark.usefixtures("only_sample")
def test_a_disagreement_is_exit_code_1() -> None:
    result = _run("run", "sample")
    assert result.exit_code == 1
    assert "✗ disagrees  number" in result.output
    assert "1 experiment: 1 disagrees." in result.output


@pytest.mark.usefixtures("only_sample")
def test_what_lacks_a_package_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(self: Sample, track: Track = silently) -> Outcome:
        raise MissingPackageError("scikit-learn", "The task", "demo")

    monkeypatch.setattr(Sample, "run", run)
    result = _run("run", "--all", "--json", str(tmp_path / "lab.json"))
    assert result.exit_code == 2
    assert "was not run. The task needs the package scikit-learn" in result.output
    assert "No experiment was run." in result.output
    assert (tmp_path / "lab.json").exists()


@pytest.mark.usefixtures("only_sample")
def test_a_page_that_cannot_be_drawn_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingPackageError("vl-convert-python", "The HTML report", "html")

    monkeypatch.setattr("evenflow.cli.lab.page.require_library", missing)
    result = _run("run", "--all", "--quick", "--html", "x.html")
    assert result.exit_code == 2
    assert "pip install vl-convert-python" in result.output
    assert "agrees" not in result.output


@pytest.mark.parametrize("args", [("run",), ("run", "--all", "sigmoid-depth")])
def test_run_wants_names_or_all(args: tuple[str, ...]) -> None:
    result = _run(*args)
    assert result.exit_code == 2
    assert "Give names of experiments, or --all. Names: evenflow lab list" in result.output


def test_an_unknown_name_is_a_mistake() -> None:
    result = _run("run", "sigmoid")
    assert result.exit_code == 2
    assert "Did you mean 'sigmoid-depth'?" in result.output


def test_pictures_are_drawn_by_vega_lite_itself() -> None:
    convert = pytest.importorskip("vl_convert")
    for picture in Sample().run().pictures:
        svg = convert.vegalite_to_svg({**charts.spec(picture), "width": 400})
        assert picture.x.title in svg
        assert "NaN" not in svg


def test_lines_keep_names_origins_and_gaps() -> None:
    picture = Sample().run().pictures[0]
    spec = charts.spec(picture)
    area, line, dots = spec["layer"]
    assert [row["y"] for row in line["data"]["values"]] == [-1.0, None, -1.0, None]
    assert {row["origin"] for row in line["data"]["values"]} == {"measured", "expected"}
    assert all(row["low"] < row["high"] for row in area["data"]["values"])
    assert [row["y"] for row in dots["data"]["values"]] == [-1.0]
    assert dots["mark"]["opacity"] == 1
    assert line["encoding"]["y"]["scale"]["domain"][0] <= -3.0


def test_the_page_stands_alone_and_escapes() -> None:
    pytest.importorskip("vl_convert")
    page = render_page(
        [
            run(Sample()),
        ]
    )
    assert "default-src 'none'" in page
    assert "A <sample>" not in page
    body = page[page.index("<body") : page.index('<script type="application/json"')]
    assert "http" not in body
    for text in ("✗", "disagrees", "Does it show?", "Read them.", "Mind this.", "offset 9.0"):
        assert text in body
