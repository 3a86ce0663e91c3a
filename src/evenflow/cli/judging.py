"""What commands that judge have in common: options for rules and for outputs, and the end of the command.

``@judging`` adds the options and hands the command one :class:`Judging` in
their place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evenflow.cli.output import save

if TYPE_CHECKING:
    from evenflow.diagnose import Diagnosis, Policy
    from evenflow.report import ReportContent

STDOUT = "-"

_OPTIONS = (
    click.option(
        "--html", "html", type=click.Path(), metavar="FILE", help="Write a page that opens offline."
    ),
    click.option(
        "--json",
        "json",
        is_flag=False,
        flag_value=STDOUT,
        type=click.Path(),
        metavar="[FILE]",
        help="Write JSON to FILE, or to standard output with - or without FILE (then put it last).",
    ),
    click.option(
        "--sarif",
        "sarif",
        type=click.Path(),
        metavar="FILE",
        help="Write SARIF to FILE, or to standard output with -: for code hosts and editors.",
    ),
    click.option(
        "--github",
        is_flag=True,
        help="Print findings as GitHub Actions shows them beside the lines of a pull request.",
    ),
    click.option("--full", is_flag=True, help="Print every layer of a deep model."),
    click.option("--force", is_flag=True, help="Overwrite existing files."),
    click.option(
        "--select", multiple=True, metavar="RULES", help="Apply only these rules, as EF101,EF2 or names."
    ),
    click.option("--ignore", multiple=True, metavar="RULES", help="Leave these rules out."),
    click.option(
        "--baseline",
        type=click.Path(),
        metavar="FILE",
        help="Accept the findings that were there when FILE was written.",
    ),
    click.option(
        "--write-baseline",
        type=click.Path(),
        metavar="FILE",
        help="Write all findings of now to FILE, to be accepted from now on, and end with exit code 0.",
    ),
)


@dataclass(frozen=True, slots=True)
class Judging:
    """The options; names are those of the command line."""

    html: str | None
    json: str | None
    sarif: str | None
    github: bool
    full: bool
    force: bool
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    baseline: str | None
    write_baseline: str | None

    @property
    def text_on_stdout(self) -> bool:
        """Whether standard output holds the report, rather than something for programs alone."""
        return STDOUT not in (self.json, self.sarif) and not self.github

    def refuse_to_overwrite(self, ctx: click.Context) -> None:
        """End the command if it would overwrite a file and was not told to."""
        if self.json == STDOUT and self.sarif == STDOUT:
            ctx.fail("--json and --sarif cannot both go to standard output. Give one of them a FILE.")
        for path in (self.html, self.json, self.sarif):
            if path not in (None, STDOUT) and Path(path).exists() and not self.force:
                ctx.fail(f"{path} exists. Name another file, or overwrite it with --force.")

    def policy(self) -> Policy:
        """The project's settings, with those of the command line on top; mistakes in either are told now.

        Raises:
            EvenflowError: A rule, a setting or a baseline is not known.
        """
        from evenflow.diagnose import Policy
        from evenflow.diagnose.registry import select_rules

        policy = Policy.of_project(Path.cwd()).also(_split(self.select), _split(self.ignore))
        select_rules(policy.select, policy.ignore)
        return policy if self.baseline is None else policy.with_baseline(Path(self.baseline))

    def finish(self, ctx: click.Context, content: ReportContent) -> None:
        """Show and write the report, and end with the exit code: 1 if there are alarms."""
        from evenflow.report import render_github, render_html, render_json, render_sarif, render_terminal

        if self.json == STDOUT:
            click.echo(render_json(content))
        elif self.sarif == STDOUT:
            click.echo(render_sarif(content))
        elif self.github:
            click.echo(render_github(content), nl=False)
        else:
            from rich.console import Console

            render_terminal(content, Console(), full=self.full)
        for path, render in (
            (self.html, render_html),
            (self.json, render_json),
            (self.sarif, render_sarif),
        ):
            if path is not None and path != STDOUT:
                save(Path(path), render(content))
        if self.write_baseline is not None:
            from evenflow.diagnose.policy import baseline_text

            save(Path(self.write_baseline), baseline_text(content.diagnosis))
            ctx.exit(0)
        ctx.exit(1 if content.diagnosis.alarms else 0)


def judging(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them as ``judging``."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        own = {field.name: kwargs.pop(field.name) for field in fields(Judging)}
        return command(*args, judging=Judging(**own), **kwargs)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def explanations(diagnosis: Diagnosis) -> dict[str, str]:
    """The page of every rule that spoke."""
    from evenflow.diagnose import explain

    found = [*diagnosis.findings, *(one.finding for one in diagnosis.suppressed)]
    return {code: explain(code) for code in dict.fromkeys(finding.code for finding in found)}


def _split(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.replace(",", " ").split()]
