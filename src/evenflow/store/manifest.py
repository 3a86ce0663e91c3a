"""run.json: what a run is, in a form that a person can read.

The file carries a checksum of itself, taken over its other fields in canonical
form (sorted keys, no spaces), so that layout and line ends do not matter but a
changed digit does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evenflow.store.schema import VERSION

NAME = "run.json"


class ManifestError(Exception):
    """The file is not a run's; the text says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of run.json.

    Attributes:
        id: Random name of the run; every part of it carries it.
        created: When it began, ISO 8601, UTC.
        state: ``running``, ``finished``, or ``failed`` when an exception ended it.
            A run that was killed stays ``running``.
        metadata: Versions, model, configuration; anything that fits in JSON.
        flushes: Table → how many flushes it got; known once the run has ended.
        schema: Version of the stored form.
    """

    id: str
    created: str
    state: str = "running"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    flushes: Mapping[str, int] = field(default_factory=dict)
    schema: int = VERSION

    def to_json(self) -> bytes:
        """The file's content."""
        fields = json.loads(json.dumps(asdict(self), default=str))  # as it will be read
        return (json.dumps({**fields, "checksum": _checksum(fields)}, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """The manifest in a file.

        Raises:
            ManifestError: It is torn, altered, foreign, or of a newer version.
        """
        try:
            fields = json.loads(content)
        except ValueError as error:
            raise ManifestError(f"it is no JSON ({error})") from error
        if not isinstance(fields, dict) or "schema" not in fields or "checksum" not in fields:
            raise ManifestError("it is no run of evenflow")
        if fields.pop("checksum") != _checksum(fields):
            raise ManifestError("its content does not match its checksum: it was altered")
        if fields["schema"] != VERSION:
            raise ManifestError(
                f"it has the stored form {fields['schema']}, and this evenflow reads form {VERSION}; "
                "upgrade evenflow"
            )
        return cls(**fields)


def _checksum(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
