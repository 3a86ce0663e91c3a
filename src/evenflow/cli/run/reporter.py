"""The thread that tells of a training while it runs, and what is said at its end.

It looks up to twice a second where there is a panel, and every ten seconds where
lines are printed, but not more often than half of the budget pays for. Rules judge
the run after 5, 10, 20 … seconds, each time later, so that they cost less and less.
The watch pays for all of it from its budget.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic, thread_time
from typing import TYPE_CHECKING, final

from evenflow.cli.run.view import View, number, view_of

if TYPE_CHECKING:
    from evenflow.cli.run.session import Session
    from evenflow.diagnose import Diagnosis, Finding
    from evenflow.watch import Watch

_FRAME_SECONDS, _LINE_SECONDS, _SLOWEST_SECONDS = 0.5, 10.0, 15.0
_SHARE = 0.5
"""Share of the budget that may go into telling; the rest is for watching."""
_FIRST_JUDGEMENT = 5.0


@final
class Reporter:
    """Tells of what a session watches.

    Args:
        session: The session.
        title: What runs.
        panel: Whether to draw a panel; lines are printed otherwise.
        quiet: Whether to say nothing at all while it runs.
    """

    def __init__(self, session: Session, title: str, *, panel: bool, quiet: bool) -> None:
        self._session, self._title, self._panel, self._quiet = session, title, panel, quiet
        self._found: dict[str, str] = {}
        self._told_flights = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_judgement = 0.0
        self._wait = _FIRST_JUDGEMENT
        self._terminal = None
        if panel:
            from evenflow.cli.run.panel import Terminal

            self._terminal = Terminal(sys.stderr.fileno())

    def began(self, watch: Watch) -> None:
        """A watch began: from now on there is something to tell."""
        if self._thread is None and not self._quiet:
            self._next_judgement = monotonic() + self._wait
            self._thread = threading.Thread(target=self._tell_forever, name="evenflow-report", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop telling; the terminal is as it was."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._terminal is not None:
            self._terminal.close()

    def _tell_forever(self) -> None:
        usual = _FRAME_SECONDS if self._terminal is not None else _LINE_SECONDS
        pause = usual
        while not self._stop.wait(pause):
            began, watch = thread_time(), self._session.watches[-1]
            try:
                self._tell(watch)
            except Exception as error:  # a panel that cannot be drawn is no reason to stop a training
                print(f"evenflow shows nothing more: {type(error).__name__}: {error}", file=sys.stderr)
                return
            spent = thread_time() - began
            watch.charge(spent)
            if isinstance(watch.cost.budget, float):
                pause = min(max(usual, spent / (_SHARE * watch.cost.budget)), _SLOWEST_SECONDS)

    def _tell(self, watch: Watch) -> None:
        view = view_of(watch)
        fresh = self._judged(watch)
        if self._terminal is None:
            self._say(_line(view))
            for text in fresh:
                self._say(text)
            return
        from rich.console import Console

        from evenflow.cli.run.panel import HEIGHT, panel

        console = Console(stderr=True)
        height = min(HEIGHT, console.height // 2)
        self._terminal.draw(panel(view, self._title, list(self._found.values()), console, height), height)

    def _judged(self, watch: Watch) -> list[str]:
        """What is new: flights at once, findings of the rules when it is time."""
        texts = {f"flight {flight.step}": flight.message for flight in self._session.flights}
        if monotonic() >= self._next_judgement:
            from evenflow.diagnose import diagnose

            texts |= {f"{f.code} {f.site}": _finding(f) for f in diagnose(watch.run).alarms}
            self._wait *= 2.0
            self._next_judgement = monotonic() + self._wait
        fresh = [text for key, text in texts.items() if key not in self._found]
        self._found |= texts
        return fresh

    def _say(self, text: str) -> None:
        print(f"evenflow: {text}", file=sys.stderr, flush=True)


def _line(view: View) -> str:
    losses = "  ".join(f"{name} {number(values[-1])}" for name, values in view.losses.items())
    parts = [f"step {view.step}", losses, f"gradient norm {number(view.norm)}", f"cost {view.cost:.1%}"]
    return "  ".join(part for part in parts if part)


def _finding(finding: Finding) -> str:
    return f"{finding.severity} {finding.code} at {finding.site}: {finding.message}"


def say_the_end(session: Session, path: str | None) -> None:
    """What was found in the run, in a few lines on stderr."""
    lines = []
    for watch in session.watches:
        run = watch.run
        steps, sampled = watch.cost.steps, watch.cost.sampled
        lines.append(f"{steps} steps watched, {sampled} of them in full.")
        lines += [f"  {flight.message}" for flight in watch.flights]
        lines += _of_rules(_judge(watch)) if run.steps else []
    if session.trouble is not None:
        lines.append(f"It could not be watched: {session.trouble}")
    elif not session.watches:
        lines.append(
            "nothing was trained: an optimizer was made, but no module with its parameters ran."
            if session.optimizers_made
            else "nothing was trained: no optimizer was made."
        )
    elif path is not None:
        lines.append(f"The run is at {path}; evenflow diagnose {path} tells more.")
    for line in lines:
        print(f"evenflow: {line}", file=sys.stderr)
    sys.stderr.flush()


def _judge(watch: Watch) -> Diagnosis:
    from evenflow.diagnose import diagnose

    return diagnose(watch.run)


def _of_rules(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.alarms:
        return ["No problem found."]
    lines = []
    for finding in diagnosis.alarms:
        lines.append(f"  {_finding(finding)}")
        if finding.remedies:
            lines.append(f"    {finding.remedies[0]}")
    return lines
