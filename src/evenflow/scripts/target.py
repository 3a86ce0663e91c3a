"""Run a script or a module as ``python`` itself does: ``__main__``, ``sys.argv``, ``sys.path``, exit code.

References:
    Python documentation, "Command line and environment", interface options;
    ``Lib/runpy.py``; ``Python/pythonrun.c`` for what an uncaught exception does.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import final


@final
class Target:
    """What is to be run.

    Args:
        name: Path of a script, or name of a module.
        arguments: What it finds in ``sys.argv[1:]``.
        as_module: Whether ``name`` is a module, as in ``python -m``.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, as_module: bool) -> None:
        self.name, self.arguments, self.as_module = name, list(arguments), as_module

    @property
    def title(self) -> str:
        """A short name: ``train`` for ``jobs/train.py`` and ``jobs.train``."""
        if self.as_module:
            return self.name.rpartition(".")[2] or self.name
        return os.path.splitext(os.path.basename(self.name))[0]

    def run(self) -> None:
        """Run it; whatever it raises comes out."""
        if self.as_module:
            sys.argv = [self.name, *self.arguments]  # runpy puts the file's path there
            _first_on_path(os.getcwd())
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
            return
        sys.argv = [self.name, *self.arguments]
        _first_on_path(os.path.dirname(os.path.realpath(self.name)))
        file = os.path.abspath(self.name)
        with io.open_code(file) as source:
            code = compile(source.read(), file, "exec", dont_inherit=True)
        main = ModuleType("__main__")
        main.__dict__.update(
            __file__=file,
            __cached__=None,
            __builtins__=builtins,
            __loader__=SourceFileLoader("__main__", file),
        )
        sys.modules["__main__"] = main  # for good, as classes of the script are pickled by this name
        exec(code, main.__dict__)


def run_to_the_end(
    target: Target, ended: Callable[[BaseException | None], None], last: Callable[[], None]
) -> int:
    """Run it, and end as ``python`` does.

    Args:
        target: What to run.
        ended: Called with what was raised, None if nothing, before it is shown.
        last: Called when all has been shown.

    Returns:
        The exit code. After Ctrl-C the process ends by that signal, once all else is done.

    Raises:
        SystemExit: The script raised it.
    """
    interrupted: list[bool] = []
    atexit.register(lambda: _die_of_interrupt() if interrupted else None)  # the last to be called
    try:
        target.run()
    except SystemExit as error:
        ended(None if error.code in (None, 0) else error)
        last()
        raise
    except BaseException as error:
        ended(error)
        error.__traceback__ = _from_script(error, target)
        sys.excepthook(type(error), error, error.__traceback__)
        last()
        if isinstance(error, KeyboardInterrupt):
            interrupted.append(True)
            return 130
        return 1
    ended(None)
    last()
    return 0


def _from_script(error: BaseException, target: Target) -> TracebackType | None:
    """The traceback without the frames in front of the script's own."""
    if isinstance(error, SyntaxError) and error.filename == os.path.abspath(target.name):
        return None
    found = error.__traceback__
    while found is not None and found.tb_frame.f_globals.get("__name__") != "__main__":
        found = found.tb_next
    return found if found is not None else error.__traceback__


def _first_on_path(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _die_of_interrupt() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
