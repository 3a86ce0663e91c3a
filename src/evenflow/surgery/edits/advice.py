"""What a patch cannot do and a person must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenflow.surgery.edit import Applicability, Edit


@final
@dataclass(frozen=True)
class Advice(Edit):
    """A sentence; nothing is changed.

    Attributes:
        text: What to do, without a full stop.
    """

    name: ClassVar[str] = "advice"
    applicability: ClassVar[Applicability] = Applicability.ADVICE
    size: ClassVar[int] = 0
    text: str

    def describe(self) -> str:
        """See :class:`Edit`."""
        return self.text
