"""How a command fails: a few lines that say what to do, and exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator

import click

from evenflow.errors import EvenflowError


class Failure(click.ClickException):
    """Shown as ``Error: …``; exit code 1 is kept for findings."""

    exit_code = 2


@contextlib.contextmanager
def plain_errors(*, debug: bool) -> Iterator[None]:
    """Turn exceptions into short messages; with ``debug`` the traceback stands above them.

    Raises:
        Failure: Something was raised inside.
        click.exceptions.Exit: The user interrupted; exit code 130, as shells have it.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt as error:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(130) from error
    except EvenflowError as error:
        if debug:
            click.echo(traceback.format_exc(), err=True)
        raise Failure(str(error)) from error
    except Exception as error:
        if debug:
            click.echo(traceback.format_exc(), err=True)
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise Failure(
            f"evenflow itself failed: {type(error).__name__}: {error} ({last.filename}:{last.lineno}).\n"
            "This should not happen. Please report it, with the output of the same command and --debug."
        ) from error


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which schedulers and ``timeout`` send, acts as Ctrl-C in the block: work is kept."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def nearest(name: str, offered: Iterable[str]) -> str | None:
    """``Did you mean 'x'?`` for the closest name; None if nothing is close."""
    close = difflib.get_close_matches(name, list(offered), n=1)
    return f"Did you mean '{close[0]}'?" if close else None
