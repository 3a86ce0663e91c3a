"""explain: the page of a rule, a symptom or a cause, found by whatever word people use."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache

from evenflow.diagnose.finding import CauseName, Symptom
from evenflow.diagnose.glossary import CAUSES, SYMPTOMS
from evenflow.diagnose.laboratory import LAB_HEADING, picture_of
from evenflow.diagnose.registry import rules
from evenflow.diagnose.rule import Rule, Threshold
from evenflow.errors import EvenflowError


def explain(word: str) -> str:
    """The page on a code, a symptom, a cause or an everyday word.

    Args:
        word: ``EF101``, ``vanishing_gradient``, ``init_too_small``, ``dead relu``, ``nan`` …;
            empty for the list of all pages.

    Returns:
        Markdown.

    Raises:
        EvenflowError: Nothing is known by that word; the text lists near ones.
    """
    wanted = _plain(word)
    if not wanted:
        return _contents()
    names = _names()
    if wanted in names:
        return _pages()[names[wanted]]()
    targets = {target for name, target in names.items() if _within(wanted, name)}
    if len(targets) == 1:
        return _pages()[targets.pop()]()
    near = sorted(targets) or difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.6)
    raise EvenflowError(
        f"There is no page on {word!r}. "
        + (f"Near it are: {', '.join(near)}. " if near else "")
        + "`evenflow explain` without a word lists all pages."
    )


def _plain(word: str) -> str:
    return " ".join(word.lower().replace("_", " ").replace("-", " ").split())


def _within(wanted: str, name: str) -> bool:
    """Whether all words asked for begin words of the name."""
    return all(any(part.startswith(asked) for part in name.split()) for asked in wanted.split())


@cache
def _names() -> dict[str, str]:
    """Every word that leads to a page → the page's title; rules win over symptoms, these over causes."""
    found: dict[str, str] = {}
    for rule in rules():
        for name in (rule.code, rule.name):
            found.setdefault(_plain(name), rule.name)
    for symptom, (_, words) in SYMPTOMS.items():
        for name in (symptom, *words):
            found.setdefault(_plain(name), str(symptom))
    for cause, entry in CAUSES.items():
        for name in (cause, *entry.words):
            found.setdefault(_plain(name), str(cause))
    return found


@cache
def _pages() -> dict[str, Callable[[], str]]:
    """Title → what writes the page."""
    found: dict[str, Callable[[], str]] = {}
    for cause in CAUSES:
        found[cause] = lambda cause=cause: _cause_page(cause)  # type: ignore[misc]
    for symptom in SYMPTOMS:
        found[symptom] = lambda symptom=symptom: _symptom_page(symptom)  # type: ignore[misc]
    for rule in rules():
        found[rule.name] = lambda rule=rule: _rule_page(rule)  # type: ignore[misc]
    return found


def _rule_page(rule: Rule) -> str:
    page = rule.page
    parts = [
        f"# {rule.code} {rule.name}",
        rule.summary,
        "## What it is",
        page.what,
        "## Why it happens",
        page.why,
        f"Causes that it can name: {', '.join(rule.causes)}.",
        "## Mathematics",
        page.mathematics,
        "## How it is detected",
        page.detection,
        "\n".join(_threshold_line(threshold) for threshold in rule.thresholds),
        "## What to do",
        page.remedies,
        _lab(rule.name),
        "## References",
        "\n".join(f"- {reference}" for reference in page.references),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _threshold_line(threshold: Threshold) -> str:
    return f"- **{threshold.value:g}** {threshold.meaning}. *Source:* {threshold.source}."


def _symptom_page(symptom: Symptom) -> str:
    text, _ = SYMPTOMS[symptom]
    found = [f"- {rule.code} {rule.name}: {rule.summary}" for rule in rules() if rule.symptom is symptom]
    parts = [f"# {symptom}", text]
    if found:
        parts += ["## Rules that find it", "\n".join(found)]
    return "\n\n".join(parts) + "\n"


def _cause_page(cause: CauseName) -> str:
    entry = CAUSES[cause]
    parts = [f"# {cause}", entry.text, "## What to do", "\n".join(f"- {remedy}" for remedy in entry.remedies)]
    named = [f"- {rule.code} {rule.name}: {rule.summary}" for rule in rules() if cause in rule.causes]
    if named:
        parts += ["## Rules that name it", "\n".join(named)]
    parts.append(_lab(cause))
    return "\n\n".join(part for part in parts if part) + "\n"


def _lab(title: str) -> str:
    """What the lab shows of it, as a sketch in text; nothing if it has no experiment on it."""
    seen = picture_of(title)
    if seen is None:
        return ""
    told = [
        LAB_HEADING,
        f"**{seen.title}.** {seen.question}",
        f"```\n{seen.sketch()}\n```",
        f"{seen.reading} (A small run; `evenflow lab run {seen.experiment}` makes it anew.)",
    ]
    return "\n\n".join(told)


def _contents() -> str:
    rule_lines = [f"- {rule.code} {rule.name}: {rule.summary}" for rule in rules()]
    return (
        "\n\n".join(
            [
                "# Pages",
                "## Rules",
                "\n".join(rule_lines),
                "## Symptoms",
                "\n".join(f"- {symptom}" for symptom in SYMPTOMS),
                "## Causes",
                "\n".join(f"- {cause}" for cause in CAUSES),
            ]
        )
        + "\n"
    )
