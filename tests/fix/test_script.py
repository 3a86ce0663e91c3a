"""Trials of unmodified scripts: what a patch does there is what the script's own options do by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from evenflow.cli import main
from evenflow.fix.course import Course
from evenflow.fix.script import Script, ScriptError
from evenflow.surgery import (
    Autocast,
    ClipGradient,
    Edit,
    GanLoss,
    InsertNorm,
    LossScale,
    Patch,
    ReplaceCell,
    SetLearningRate,
    SetLoss,
    SetOptimizer,
    SwapActivation,
    UseLogits,
)

SCRIPTS = Path(__file__).parent / "scripts"
OTHERS = Path(__file__).parents[1] / "cli" / "scripts"
STEPS = 7


def _script(folder: Path, *arguments: object, name: str = "train.py", **settings: Any) -> Script:
    return Script(str(SCRIPTS / name), tuple(map(str, arguments)), folder=str(folder), **settings)


def _course(folder: Path, *arguments: object, edits: tuple[Edit, ...] = (), seed: int = 0) -> Course:
    patch = Patch(edits) if edits else None
    return _script(folder, *arguments).course((patch, seed, STEPS))


def test_a_trial_computes_what_the_script_does(tmp_path: Path) -> None:
    script = [sys.executable, str(SCRIPTS / "train.py"), "--steps", "8"]
    plain = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "model.pt").unlink()
    printed = [float(line.split()[-1]) for line in plain.stdout.splitlines() if line.startswith("step")]
    assert _course(tmp_path).losses == tuple(printed[:STEPS])
    assert len(printed) == 8


@pytest.mark.parametrize(
    ("edits", "by_hand"),
    [
        ((SwapActivation(to="tanh"),), ("--act", "Tanh")),
        ((SetOptimizer("adam", lr=0.02),), ("--optimizer", "Adam", "--lr", 0.02)),
        ((SetLearningRate(factor=0.5),), ("--lr", 0.05)),
        ((LossScale(1024.0),), ()),
    ],
    ids=lambda value: value[0].name if value and isinstance(value[0], Edit) else "",
)
def test_a_patch_does_what_is_done_by_hand(
    edits: tuple[Edit, ...], by_hand: tuple[object, ...], tmp_path: Path
) -> None:
    patched = _course(tmp_path, edits=edits)
    assert patched.trouble == ""
    assert patched.losses == _course(tmp_path, *by_hand).losses
    assert by_hand == () or patched.losses != _course(tmp_path).losses


@pytest.mark.parametrize("edit", [UseLogits(), SetLoss("cross_entropy")], ids=lambda edit: edit.name)
def test_losses_are_changed_where_they_are_called(edit: Edit, tmp_path: Path) -> None:
    patched = _course(tmp_path, "--loss", "twice", edits=(edit,))
    assert patched.losses == _course(tmp_path).losses
    assert patched.losses != _course(tmp_path, "--loss", "twice").losses


def test_new_parameters_are_trained_and_code_quotes_the_script(tmp_path: Path) -> None:
    course = _course(tmp_path, edits=(InsertNorm("layer"), ClipGradient()))
    assert len(course.losses) == STEPS
    assert course.losses[-1] < course.losses[0]
    assert "nn.LayerNorm" in course.code
    assert "train.py:" in course.code


@pytest.mark.parametrize(
    ("edit", "arguments", "said"),
    [
        (GanLoss("hinge"), (), "gan_loss does not fit a script: it needs the loss as a function"),
        (SetLoss("mse"), ("--loss", "own"), "it calls none of PyTorch's loss functions"),
        (ReplaceCell(), (), "replace_cell does not fit this model"),
    ],
    ids=lambda value: value.name if isinstance(value, Edit) else "",
)
def test_what_cannot_be_patched_is_said(
    edit: Edit, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    course = _course(tmp_path, *arguments, edits=(edit,))
    assert course.losses == ()
    assert said in course.trouble


def test_autocast_and_hand_written_losses(tmp_path: Path) -> None:
    course = _course(tmp_path, edits=(Autocast(),))
    assert course.losses != _course(tmp_path).losses
    assert course.losses == pytest.approx(_course(tmp_path).losses, rel=0.05)


def test_seeds_give_other_draws_that_can_be_repeated(tmp_path: Path) -> None:
    own, other = _course(tmp_path), _course(tmp_path, seed=1)
    assert own.losses != other.losses
    assert other.losses == _course(tmp_path, seed=1).losses
    unseeded = [_course(tmp_path, "--unseeded", seed=seed).losses for seed in (0, 0, 1)]
    assert unseeded[0] == unseeded[1] != unseeded[2]


def test_a_trial_sees_the_environment_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "says.py"
    script.write_text((SCRIPTS / "train.py").read_text() + "\nimport os\nprint('rate', os.environ['RATE'])\n")
    seen = []
    for rate in ("1", "2"):
        monkeypatch.setenv("RATE", rate)
        seen.append(
            Script(str(script), ("--steps", "2"), folder=str(tmp_path), metric="rate").course((None, 0, 9))
        )
    assert [course.metric for course in seen] == [1.0, 2.0]


def test_checkpoints_are_left_alone(tmp_path: Path) -> None:
    script = _script(tmp_path, "--steps", 3)
    course = script.course((None, 0, 100))
    assert len(course.losses) == 8, "it runs to its end, which comes after a whole epoch"
    assert list(tmp_path.iterdir()) == []


def test_a_metric_is_read_from_what_is_printed(tmp_path: Path) -> None:
    course = _script(tmp_path, "--steps", 8, metric="accuracy").course((None, 0, 100))
    assert course.metric is not None
    assert 0.5 < course.metric <= 1.0
    less = _script(tmp_path, "--steps", 8, metric="-loss").course((None, 0, 100))
    assert less.metric == -less.losses[-1]
    with pytest.raises(ScriptError, match="printed no number behind 'bleu' in 3 steps"):
        _script(tmp_path, metric="bleu").course((None, 0, 3))


def test_a_script_that_crashes_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScriptError) as caught:
        _course(tmp_path, "--crash", 2)
    text = str(caught.value)
    assert "failed after 3 steps without any patch: RuntimeError: the disk is full." in text
    assert 'raise RuntimeError("the disk is full")' in text, "the last lines of its stderr"
    with pytest.raises(ScriptError, match="before the first step was over"):
        _course(tmp_path, "--depth", "invalid")


def test_a_script_that_trains_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="trained nothing: no module with parameters"):
        _script(tmp_path, name="useless.py").course((None, 0, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package"), [("lightning_module.py", "lightning"), ("accelerated.py", "accelerate")]
)
@pytest.mark.parametrize(
    "edit",
    [InsertNorm("layer"), SetOptimizer("sgd", lr=0.1), ClipGradient("norm", 1e-3)],
    ids=lambda e: e.name,
)
def test_trainers(name: str, package: str, edit: Edit, tmp_path: Path) -> None:
    pytest.importorskip(package)
    script = Script(str(OTHERS / name), folder=str(tmp_path))
    plain, patched = script.course((None, 0, STEPS)), script.course((Patch([edit]), 0, STEPS))
    assert patched.trouble == ""
    assert len(plain.losses) == len(patched.losses) == STEPS
    assert plain.losses != patched.losses


# --- the command ---


def _fix(*arguments: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, ["fix", *map(str, arguments)])


def test_a_script_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (SCRIPTS / "train.py", "--depth", 8, "--act", "Sigmoid")
    plain = subprocess.run(
        [sys.executable, *map(str, script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(plain.stdout.split()[-1]) < 0.5
    (tmp_path / "model.pt").unlink()
    files = ("--write", "patch.json", "--html", "fix.html")
    options = ("--seeds", 2, "--steps", 16, *files, "--code", "--all", "--apply")
    result = _fix(*options, *script, folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert "vanishing gradient" in result.output
    assert "confirmed" in result.output
    assert "refuted" in result.output
    assert "def edit_" in result.output
    page = (tmp_path / "fix.html").read_text(encoding="utf-8")
    assert 'id="picture-loss"' in page
    assert 'id="picture-gradient"' in page
    assert Patch.load(tmp_path / "patch.json").edits
    # --apply: the whole script with the patch on it
    printed = capfd.readouterr().out
    assert float(re.findall(r"accuracy ([0-9.]+)", printed)[-1]) > 0.9
    assert (tmp_path / "model.pt").exists()


def test_a_healthy_script_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _fix("--steps", 25, SCRIPTS / "train.py", folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert "Nothing to fix." in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.py"], "There is no file 'nothing.py'"),
        (["tests.fix.programs:healthy", "--epochs"], "No such option"),
        (["--apply", "tests.fix.programs:healthy"], "--apply are for scripts"),
        ([SCRIPTS / "train.py", "--crash", "1"], "the disk is full"),
    ],
)
def test_mistakes_are_told(
    arguments: list[object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _fix(*arguments, folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 2
    assert said in result.output
