"""What a project says of its findings: which rules apply, what is accepted and why, what was there before.

In pyproject.toml:

    [tool.evenflow]
    select = ["EF1", "EF7"]             # only these rules; all by default
    ignore = ["dead_units"]             # never these
    baseline = "evenflow-baseline.json" # findings that were there when the file was written

    [[tool.evenflow.suppress]]
    rules = ["EF501"]
    paths = ["backbone.*"]              # of modules or parameters; * matches dots too
    reason = "The backbone is frozen on purpose."

A suppression without a reason is a mistake. What is suppressed stays in the
diagnosis, apart from the findings.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from evenflow.diagnose.finding import Diagnosis, Finding, Suppressed
from evenflow.diagnose.registry import select_rules
from evenflow.errors import EvenflowError

BASELINE_VERSION = 1
IN_BASELINE = "it was there when the baseline was written"

_KEYS = ("select", "ignore", "baseline", "suppress")
_SUPPRESSION_KEYS = ("rules", "paths", "reason")


class PolicyError(EvenflowError):
    """The project's settings, or its baseline, cannot be used."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """Findings of some rules at some places, accepted for a reason.

    Attributes:
        codes: Of the rules.
        paths: Patterns of sites, as in ``fnmatch``.
        reason: Why.
    """

    codes: frozenset[str]
    paths: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether it speaks of this finding."""
        return finding.code in self.codes and any(fnmatchcase(finding.site, path) for path in self.paths)


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of findings.

    Attributes:
        select: Rules to apply, as in :func:`~evenflow.diagnose.diagnose`; all if empty.
        ignore: Rules to leave out.
        suppressions: Accepted findings.
        baseline: Findings, by :func:`identity`, that were there before.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    suppressions: tuple[Suppression, ...] = ()
    baseline: frozenset[tuple[str, str, str]] = frozenset()

    def settle(self, diagnosis: Diagnosis) -> Diagnosis:
        """Move what is accepted from the findings to the suppressed ones."""
        kept, suppressed = [], list(diagnosis.suppressed)
        for finding in diagnosis.findings:
            reason = self._reason(finding)
            if reason is None:
                kept.append(finding)
            else:
                suppressed.append(Suppressed(finding, reason))
        return replace(diagnosis, findings=tuple(kept), suppressed=tuple(suppressed))

    def _reason(self, finding: Finding) -> str | None:
        for suppression in self.suppressions:
            if suppression.covers(finding):
                return suppression.reason
        return IN_BASELINE if identity(finding) in self.baseline else None

    def also(self, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Policy:
        """With what a command line says on top: its ``select`` wins, its ``ignore`` is added."""
        return replace(self, select=tuple(select) or self.select, ignore=(*self.ignore, *ignore))

    def with_baseline(self, path: Path) -> Policy:
        """With the findings of a baseline file.

        Raises:
            PolicyError: It cannot be read.
        """
        return replace(self, baseline=self.baseline | read_baseline(path))

    @classmethod
    def of_project(cls, start: Path) -> Self:
        """The settings of the nearest pyproject.toml with a table ``tool.evenflow``, from a folder upwards.

        Raises:
            PolicyError: The table cannot be used.
        """
        for folder in (start.resolve(), *start.resolve().parents):
            path = folder / "pyproject.toml"
            if path.is_file():
                settings = _table(path)
                if settings is not None:
                    return cls._of_table(settings, path)
        return cls()

    @classmethod
    def _of_table(cls, settings: Mapping[str, Any], path: Path) -> Self:
        _known(settings, _KEYS, f"{path}: [tool.evenflow]")
        baseline = settings.get("baseline")
        if baseline is not None and not isinstance(baseline, str):
            raise PolicyError(
                f"{path}: [tool.evenflow] baseline: expected the name of a file, got {baseline!r}."
            )
        chosen = {name: _texts(settings.get(name, []), path, name) for name in ("select", "ignore")}
        for name, words in chosen.items():
            _codes(words, f"{path}: [tool.evenflow] {name}")
        tables = settings.get("suppress", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise PolicyError(f"{path}: write suppressions as [[tool.evenflow.suppress]] tables.")
        policy = cls(
            select=chosen["select"],
            ignore=chosen["ignore"],
            suppressions=tuple(_suppression(table, path) for table in tables),
        )
        return policy if baseline is None else replace(policy, baseline=read_baseline(path.parent / baseline))


def identity(finding: Finding) -> tuple[str, str, str]:
    """What makes two findings the same from one run to the next: code, symptom and site."""
    return finding.code, str(finding.symptom), finding.site


def baseline_text(diagnosis: Diagnosis) -> str:
    """A baseline file that accepts all findings of a diagnosis, as JSON."""
    findings = [
        {"code": code, "symptom": symptom, "site": site}
        for code, symptom, site in sorted(
            {identity(finding) for finding in diagnosis.findings}
            | {identity(one.finding) for one in diagnosis.suppressed if one.reason == IN_BASELINE}
        )
    ]
    return json.dumps({"schema_version": BASELINE_VERSION, "findings": findings}, indent=1) + "\n"


def read_baseline(path: Path) -> frozenset[tuple[str, str, str]]:
    """The findings of a baseline file.

    Raises:
        PolicyError: It is not there, or is no baseline.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["schema_version"])
        found = frozenset((one["code"], one["symptom"], one["site"]) for one in content["findings"])
    except OSError as error:
        raise PolicyError(
            f"The baseline {path} cannot be read: {error.strerror}. Write one with --write-baseline {path}."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(
            f"{path} is no baseline of evenflow. Write one with --write-baseline {path}."
        ) from error
    if version > BASELINE_VERSION:
        raise PolicyError(
            f"{path} was written by a newer evenflow (schema {version}). "
            "Update evenflow, or write the baseline anew with --write-baseline."
        )
    return found


def _table(path: Path) -> Mapping[str, Any] | None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{path} cannot be read: {error}.") from error
    found = content.get("tool", {}).get("evenflow")
    if found is not None and not isinstance(found, dict):
        raise PolicyError(f"{path}: [tool.evenflow] is no table.")
    return found


def _suppression(table: Mapping[str, Any], path: Path) -> Suppression:
    where = f"{path}: [[tool.evenflow.suppress]]"
    _known(table, _SUPPRESSION_KEYS, where)
    reason = table.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise PolicyError(f'{where}: a suppression needs a reason = "...", in words for later readers.')
    rules = _texts(table.get("rules", []), path, "rules")
    if not rules:
        raise PolicyError(f'{where}: name its rules, as rules = ["EF501"].')
    paths = _texts(table.get("paths", ["*"]), path, "paths")
    return Suppression(_codes(rules, f"{where} rules"), paths, reason.strip())


def _codes(words: Iterable[str], where: str) -> frozenset[str]:
    words = tuple(words)
    try:
        return frozenset(rule.code for rule in select_rules(words)) if words else frozenset()
    except EvenflowError as error:
        raise PolicyError(f"{where}: {str(error).removeprefix('select: ')}") from error


def _texts(value: object, path: Path, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise PolicyError(f"{path}: {name}: expected a list of texts, got {value!r}.")
    return tuple(value)


def _known(table: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    unknown = set(table) - set(keys)
    if unknown:
        raise PolicyError(f"{where} has no setting {min(unknown)!r}. It has: {', '.join(keys)}.")
