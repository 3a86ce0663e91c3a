"""Processes for trials that need not import PyTorch: one process does, and forks a child for each trial.

Importing PyTorch takes seconds, a short trial less. What a script sets before it
imports PyTorch is set too late then; this matters for numbers of threads alone, as
CUDA is not touched before the fork. A child gets the environment variables of its own
call; those that Python and PyTorch read at their start stay as the first call had them.
Where there is no safe fork (all but Linux), each trial is a fresh process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

_nurseries: list[subprocess.Popen[bytes]] = []
"""The one of this process, once there is one."""
_turn = Lock()
"""A nursery runs one trial at a time."""


def run(folder: Path, where: str, environment: Mapping[str, str], seconds: float | None = None) -> int:
    """Run the job in a folder, in a process of its own; what it prints goes into the folder.

    Args:
        folder: Holds ``job.json``; see :mod:`evenflow.scripts.trial`.
        where: Current folder of the process.
        environment: Its environment variables.
        seconds: How long it may take; None for no limit.

    Returns:
        Its exit code, negative if a signal ended it.

    Raises:
        TimeoutError: It took longer, and was ended.
    """
    if sys.platform != "linux":
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            command = [sys.executable, "-m", "evenflow.scripts", str(folder)]
            try:
                return subprocess.run(
                    command,
                    cwd=where,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    check=False,
                    timeout=seconds,
                ).returncode
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
    # By the pipe, not by a file: environments hold passwords.
    job = {"folder": os.fspath(folder), "where": os.path.abspath(where), "environment": dict(environment)}
    with _turn:
        if not _nurseries or _nurseries[0].poll() is not None:
            command = [sys.executable, "-m", "evenflow.scripts"]
            _nurseries[:] = [
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # so that it can be ended with its trial, whoever is told to stop
                )
            ]
        nursery = _nurseries[0]
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        try:
            nursery.stdin.write(json.dumps(job).encode() + b"\n")
            nursery.stdin.flush()
            if not select.select([nursery.stdout], [], [], seconds)[0]:
                raise TimeoutError
            answer = nursery.stdout.readline()
        except BaseException:  # Ctrl-C: whatever runs there is of no use any more
            close()
            raise
        return int(answer) if answer else nursery.wait()


@atexit.register
def close() -> None:
    """End all nurseries, and the trials in them."""
    while _nurseries:
        with contextlib.suppress(OSError), _nurseries.pop() as nursery:
            if nursery.poll() is None:  # else its number may be another's by now
                os.killpg(nursery.pid, signal.SIGKILL)


def serve() -> None:
    """Be a nursery: read jobs from standard input, run each in a child, answer with exit codes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_all()
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            job = json.loads(line)
            os.chdir(job["where"])
            _be_the_trial(Path(job["folder"]), job["environment"])
        _, status = os.waitpid(child, 0)
        sys.stdout.buffer.write(b"%d\n" % os.waitstatus_to_exitcode(status))
        sys.stdout.buffer.flush()


def _import_all() -> None:
    """What every trial needs; an optimizer imports the compiler when it is made."""
    import torch

    import evenflow.surgery  # noqa: F401

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def _be_the_trial(folder: Path, environment: Mapping[str, str]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        for descriptor, place, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, folder / "stdout", os.O_WRONLY | os.O_CREAT),
            (2, folder / "stderr", os.O_WRONLY | os.O_CREAT),
        ):
            file = os.open(place, flags, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
        from evenflow.scripts.trial import main

        main(folder)
        atexit._run_exitfuncs()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
