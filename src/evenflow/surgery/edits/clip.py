"""Gradient clipping: by norm, value, unit (AGC), percentile (AutoClip), deviation (ZClip)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.pieces import clipping
from evenflow.surgery.pieces.clipping import before_update
from evenflow.surgery.script import Ref, Set, Step, call, step

_METHODS: dict[str, tuple[Any, float, float]] = {
    "norm": (clipping.ClipNorm, 1.0, float("inf")),
    "value": (clipping.ClipValue, 1.0, float("inf")),
    "agc": (clipping.ClipAdaptive, 0.01, float("inf")),
    "percentile": (clipping.ClipPercentile, 10.0, 100.0),
    "zclip": (clipping.ZClip, 2.5, float("inf")),
}
"""Method → (clipper, default limit, largest limit). 1.0 for norm and value is custom; .01: Brock et al. 2021
for batches of 4096; 10: Seetharaman et al. 2020; 2.5: Kumar et al. 2025."""


@final
@dataclass(frozen=True)
class ClipGradient(Edit):
    """Clip gradients before each update of the optimizer.

    Attributes:
        method: ``norm`` (all together), ``value`` (each entry), ``agc`` (each unit, relative to its
            weights), ``percentile`` (of the norms so far), ``zclip`` (deviations above the mean).
        limit: The norm, value, share, percentile or deviations; None: 1, 1, .01, 10, 2.5.
    """

    rank: ClassVar[int] = 3
    name: ClassVar[str] = "clip_gradient"
    reference: ClassVar[str] = (
        "Pascanu et al., ICML 2013; Brock et al., ICML 2021 (AGC); Seetharaman et al. 2020 (AutoClip); "
        "Kumar et al. 2025 (ZClip)"
    )
    method: str = "norm"
    limit: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "method", self.method, tuple(_METHODS))
        if self.limit is not None:
            check_number(self.name, "limit", self.limit, 0.0, _METHODS[self.method][2])

    @property
    def at(self) -> float:
        """The limit in force."""
        return _METHODS[self.method][1] if self.limit is None else self.limit

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"gradients are clipped by {self.method} at {self.at:g}"

    def optimizer_steps(self) -> Iterator[Step]:
        """See :class:`Edit`."""
        clipper = call(_METHODS[self.method][0], self.at)
        by_hand = {
            "norm": f"nn.utils.clip_grad_norm_(model.parameters(), {self.at!r})",
            "value": f"nn.utils.clip_grad_value_(model.parameters(), {self.at!r})",
        }.get(self.method)
        note = f"or, in your loop before optimizer.step(): {by_hand}" if by_hand else None
        yield step(Set(Ref("optimizer"), call(before_update, Ref("optimizer"), clipper)), note=note)
