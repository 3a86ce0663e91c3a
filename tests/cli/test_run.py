"""``evenflow run``: ordinary scripts, none of them changed, do what they do under ``python``."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from evenflow.cli import main
from evenflow.cli.run.session import Session, Settings
from evenflow.cli.run.view import Layer, View, thinned
from evenflow.diagnose import Severity, diagnose
from evenflow.scripts.discovery import named_models, named_optimizers, owners
from evenflow.store import open_run
from evenflow.watch.recorder import Trouble, read_flights

SCRIPTS = Path(__file__).parent / "scripts"
RUN = ["-m", "evenflow", "run"]


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@contextmanager
def endless(folder: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A training that only Ctrl-C ends: heard also where tests run deaf to it, and never left behind."""
    command = [sys.executable, *RUN, "--path", "run", str(SCRIPTS / "endless.py")]
    own = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a child inherits only that one is ignored
    with subprocess.Popen(command, cwd=folder, text=True, **options) as process:
        signal.signal(signal.SIGINT, own)
        try:
            yield process
        finally:
            process.kill()


def same_bits(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    return len(first) == len(second) and all(map(same_bits, first, second))


def both(script: str, tmp_path: Path, *, launcher: tuple[str, ...] = ()) -> None:
    """Run it with and without evenflow; output, exit code and weights are the same."""
    plain = python(*launcher, SCRIPTS / script, "plain.pt", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    watched = python(*launcher, *RUN, "--path", "run", SCRIPTS / script, "watched.pt", cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert _without_times(watched.stdout) == _without_times(plain.stdout)
    assert same_bits(torch.load(tmp_path / "plain.pt"), torch.load(tmp_path / "watched.pt"))
    assert "evenflow: The run is at run" in watched.stderr


def _without_times(text: str) -> list[str]:
    return [line for line in text.splitlines() if "train_runtime" not in line]


# --- ordinary scripts ---


def test_a_plain_script(tmp_path: Path) -> None:
    arguments = (SCRIPTS / "plain.py", "--exit", "3", "--save")
    plain = python(*arguments, "plain.pt", cwd=tmp_path)
    watched = python(*RUN, "--path", "run", *arguments, "watched.pt", cwd=tmp_path)
    assert plain.returncode == watched.returncode == 3
    assert watched.stdout == plain.stdout != ""
    assert watched.stderr.startswith(plain.stderr)
    assert same_bits(torch.load(tmp_path / "plain.pt"), torch.load(tmp_path / "watched.pt"))
    run = open_run(tmp_path / "run")
    assert list(run.scalars["loss"].steps) == list(range(12))
    assert run.steps[0] == 0, "the first step is seen whole"
    assert {"body.0", "head"} <= run.flow(0).rms("activation_gradient").keys()
    assert run.metadata["model"] == "Net"
    assert run.metadata["config"] == {
        "script": str(SCRIPTS / "plain.py"),
        "arguments": ["--exit", "3", "--save", "watched.pt"],
    }
    assert run.metadata["state"] == "failed", "its exit code says so"


def test_a_gan(tmp_path: Path) -> None:
    both("gan.py", tmp_path)
    run = open_run(tmp_path / "run")
    assert run.metadata["model"] == {"generator": "Sequential", "discriminator": "Sequential"}
    assert len(run.scalars["loss/generator"]) == len(run.scalars["loss/discriminator"]) == 15
    assert {"generator.0", "discriminator.0"} <= run.flow(0).rms("activation_gradient").keys()


def test_torchrun(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    both("distributed.py", tmp_path, launcher=launcher)
    assert len(open_run(tmp_path / "run").scalars["loss"]) == 10
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"], "rank 0 alone writes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package", "steps"),
    [
        ("lightning_module.py", "lightning", 12),
        ("accelerated.py", "accelerate", 12),
        ("trainer.py", "transformers", 8),
    ],
)
def test_scripts_of_frameworks(script: str, package: str, steps: int, tmp_path: Path) -> None:
    pytest.importorskip(package)
    both(script, tmp_path)
    run = open_run(tmp_path / "run")
    assert len(run.scalars["loss"]) == steps
    assert run.flow(0).rms("activation_gradient")


# --- as python does ---


def test_a_script_sees_what_it_sees_under_python(tmp_path: Path) -> None:
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(SCRIPTS / "environment.py", package / "train.py")
    for target in (["jobs/train.py"], ["-m", "jobs.train"]):
        plain = python(*target, "--lr", "3", "-m", cwd=tmp_path)
        watched = python(*RUN, *target, "--lr", "3", "-m", cwd=tmp_path)
        assert plain.returncode == watched.returncode == 7
        assert watched.stdout == plain.stdout
        assert (
            "['--lr', '3', '-m']" in plain.stdout.replace("jobs/train.py', ", "['") or "--lr" in plain.stdout
        )
        assert watched.stderr == "evenflow: nothing was trained: no optimizer was made.\n"


def test_an_exception_looks_as_it_does_under_python_and_the_flight_says_why(tmp_path: Path) -> None:
    script = SCRIPTS / "broken.py"
    watched = python(*RUN, "--everything", "--path", "run", script, cwd=tmp_path)
    assert watched.returncode == 1
    line = next(i for i, text in enumerate(script.read_text().splitlines(), 1) if "raise" in text)
    assert watched.stderr.startswith(
        "Traceback (most recent call last):\n"
        f'  File "{script}", line {line}, in <module>\n'
        '    raise ValueError("the loss is not finite")\n'
        "ValueError: the loss is not finite\nevenflow: "
    )
    (flight,) = read_flights(tmp_path / "run")
    assert flight.trouble is Trouble.EXCEPTION
    assert flight.culprit is not None
    assert (flight.step, flight.culprit.module) == (5, "")
    assert f"evenflow:   {flight.message}" in watched.stderr
    assert open_run(tmp_path / "run").metadata["state"] == "failed"


def test_ctrl_c_ends_it_as_it_ends_python(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with endless(tmp_path, env=_environment(), stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "evenflow: The run is at run" in errors
    run = open_run(tmp_path / "run")
    assert run.metadata["state"] == "failed"
    assert len(run.scalars["loss"]) >= 19
    assert read_flights(tmp_path / "run") == ()


def test_phases_have_runs_of_their_own(tmp_path: Path) -> None:
    done = python(*RUN, "--path", "run", SCRIPTS / "phases.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = open_run(tmp_path / "run"), open_run(tmp_path / "run-2")
    assert first.metadata["model"] == {"body": "Linear", "head": "Linear"}
    assert len(first.scalars["lr/head"]) == len(first.scalars["lr/body"]) == 4
    assert len(second.scalars["loss"]) == 3


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Settings(None, None, budget=None, overwrite=False, script="x.py", arguments=()))
    made.install()
    yield made
    made.close()


def test_an_optimizer_made_from_other_parameters_is_watched_beside_the_model(session: Session) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(nn.Linear(8, 1).parameters(), 0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    assert ["holds no parameter of the model" in str(one.message) for one in told] == [True]
    session.close()
    (watched,) = session.watches
    assert len(watched.run.scalars["loss"]) == 4
    (finding,) = diagnose(watched.run, select="EF609").findings
    assert finding.severity is Severity.WARNING


def test_an_optimizer_of_bare_tensors_is_no_fault(session: Session) -> None:
    model, image = nn.Linear(4, 1), torch.ones(3, 4, requires_grad=True)
    optimizer = torch.optim.SGD([image], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()
    assert session.watches == []


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.py"], "There is no file 'none.py'. For a module write: evenflow run -m none.py"),
        ([], "Missing argument 'SCRIPT'"),
        (
            ["--panel", str(SCRIPTS / "environment.py")],
            "--panel needs a terminal, and standard error is none.",
        ),
        (["--budget", "2", "x.py"], "Invalid value for '--budget'"),
    ],
)
def test_mistakes_are_told(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["run", *arguments], prog_name="evenflow")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    arguments = ["run", "--path", str(tmp_path), str(SCRIPTS / "environment.py")]
    result = CliRunner().invoke(main, arguments, prog_name="evenflow")
    assert result.exit_code == 2
    assert "There is a run at" in result.stderr


# --- discovery ---


def test_models_are_the_top_most_owners_of_the_parameters() -> None:
    whole = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    other = nn.Linear(2, 1)
    wrapper = nn.DataParallel(other)
    parameters = {id(p) for p in [*whole[1].parameters(), *other.parameters()]}
    assert {id(model) for model in owners(parameters)} == {id(whole), id(other)}
    assert named_models([whole]) == {"": whole}
    named = named_models([whole, nn.Sequential()])
    assert list(named) == ["sequential", "sequential_2"]
    optimizers = [torch.optim.SGD(whole.parameters()), torch.optim.SGD(other.parameters())]
    roles: dict[str, nn.Module] = {"a": whole, "b": other}
    assert list(named_optimizers(optimizers, roles)) == ["a", "b"]
    del wrapper


# --- the panel ---


def view() -> View:
    levels = [(-6.0, -5.0), (-3.0, None), (-1.0, float("inf"))]
    layers = tuple(Layer(f"encoder.layers.{i}.self_attention.out", level) for i, level in enumerate(levels))
    return View(41, {"loss": [2.0, 1.5, 1.0]}, (40, 41), layers, 0.125, 0.008)


def lines(view: View, *, width: int = 76, height: int = 10) -> list[str]:
    import io

    from rich.console import Console

    from evenflow.cli.run.panel import panel

    console = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=width)
    return panel(view, "train", ["warning EF101 at x: it shrinks"], console, height)


def test_the_panel_without_colours() -> None:
    assert lines(view()) == [
        "─" * 76,
        "evenflow train   step 41   gradient norm 0.125   watching takes 0.8%",
        "loss                        █▅▁ 1",
        "gradient norm by layer      2 looks since step 40   10⁻⁶ ·░░▒▒▓▓███ 10⁻¹",
        "  …ers.0.self_attention.out ·░ 1e-05",
        "  …ers.1.self_attention.out ▓  none",
        "  …ers.2.self_attention.out █! not finite",
        "▲ warning EF101 at x: it shrinks",
    ]


def test_a_narrow_low_window_is_respected() -> None:
    found = lines(view(), width=30, height=5)
    assert len(found) <= 5
    assert all(len(line) <= 30 for line in found)


def test_before_the_first_gradients_the_panel_says_so() -> None:
    assert "waiting for the first gradients" in lines(View(0))


def test_many_layers_are_thinned_evenly() -> None:
    layers = [Layer(str(i), ()) for i in range(100)]
    assert [layer.name for layer in thinned(layers, 4)] == ["0", "33", "66", "99"]
    assert thinned(layers[:3], 4) == layers[:3]


def test_the_panel_gives_the_terminal_back(tmp_path: Path) -> None:
    """In a terminal of its own: lines are reserved below the script's output, and given back after Ctrl-C."""
    ours, theirs = pty.openpty()
    rows, columns = 24, 80
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    terminal = {**_environment(), "TERM": "xterm-256color"}
    with endless(tmp_path, env=terminal, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"gradient norm by layer" not in seen:
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # the other end is closed
            pass
        process.wait(timeout=120)
    os.close(ours)
    text = seen.decode(errors="replace")
    assert f"\x1b[1;{rows // 2}r" in text
    assert text.rindex(f"\x1b[1;{rows}r") > text.rindex(f"\x1b[1;{rows // 2}r")
    assert "The run is at run" in text[text.rindex(f"\x1b[1;{rows}r") :]
