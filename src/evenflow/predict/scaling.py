"""How gradients scale with depth: a slope, a depth scale, and the depth at which a number format gives out.

Along L blocks log10 RMS of the gradient is close to a line. Its slope s, in
decades per block counted towards the input, and the depth scale ξ of the mean
square (E g² ∝ e^(−l/ξ)) are the same fact:

    ξ = −1 / (2 s ln 10).

A gradient that starts at RMS g₀ sinks below the smallest normal number 2^m of a
format after (log10 g₀ − m log10 2)/(−s) blocks.

References:
    Schoenholz et al., "Deep Information Propagation", 2017: ξ as the depth to
    which a network can be trained (a few ξ).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenflow.flow import FORMATS, Flow, Role

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAINABLE_DEPTH_SCALES = 6.0
"""Networks train up to a depth of about 6 ξ (Schoenholz et al. 2017, Figure 5)."""


@dataclass(frozen=True)
class DepthLaw:
    """The line through log10 RMS of the gradient along the chain.

    Attributes:
        slope: Decades of RMS per link, towards the input; negative where gradients vanish.
        links: Links that the line was fitted to.
        residual: Root mean square deviation from the line, in decades.
        start: log10 RMS of the line at the output's end.
    """

    slope: float
    links: int
    residual: float
    start: float

    @property
    def depth_scale(self) -> float:
        """ξ in links; infinite on the edge of chaos, negative where gradients explode."""
        return math.inf if self.slope == 0 else -1 / (2 * self.slope * math.log(10))

    @property
    def trainable_depth(self) -> float:
        """Links over which a gradient still trains what it reaches."""
        return TRAINABLE_DEPTH_SCALES * abs(self.depth_scale)

    def depth_until_underflow(self, format_name: str) -> float:
        """Links until the gradient's RMS is below the format's smallest normal number; infinite if never."""
        if self.slope >= 0:
            return math.inf
        return max(self.start - FORMATS[format_name].min_normal * math.log10(2), 0.0) / -self.slope


def depth_law(flow: Flow, op: str | None = None) -> DepthLaw:
    """Fit a line to the activation gradients along the chain of a Flow.

    Args:
        flow: Predicted or measured.
        op: Count only ops of this name, such as ``"addmm"``, one per layer.

    Raises:
        ValueError: The chain has fewer than three such links.
    """
    rows = [
        row
        for row in flow.chain(Role.ACTIVATION_GRADIENT)
        if row.stats is not None and row.stats.mean_square > 0
    ]
    rows = [row for row in rows if op is None or row.site.op == op]
    if len(rows) < 3:
        raise ValueError(
            f"A depth law needs at least three ops{f' named {op!r}' if op else ''} on the chain; "
            f"found {len(rows)}. Give the name of an op that every layer has, such as 'addmm' or 'add'."
        )
    return _line([row.stats.log10_rms for row in rows if row.stats is not None])


def block_law(flow: Flow) -> DepthLaw | None:
    """The depth law of a net's repeated blocks, from one Flow of it.

    Args:
        flow: Predicted or measured.

    Returns:
        The line through the gradient's levels at the outputs of the longest numbered
        sequence of blocks (``h.0``, ``h.1`` …) on the chain, of more than one op
        each; None if it has fewer than three.
    """
    links = [link for link in flow.budget("block") if len(link.ops) > 1 and _sequence(link.place)]
    groups = [list(group) for _, group in itertools.groupby(links, key=lambda link: _sequence(link.place))]
    longest = max(groups, key=len, default=[])
    levels = [link.log10_norm_out for link in longest]
    if len(levels) < 3 or not all(map(math.isfinite, levels)):
        return None
    entries = next(
        row.stats.count
        for row in flow.chain(Role.ACTIVATION_GRADIENT)
        if row.stats is not None and row.stats.log10_norm == levels[-1]
    )
    return _line([level - 0.5 * math.log10(entries) for level in levels])


def _sequence(place: str) -> str:
    """The list that a numbered block belongs to; empty for any other place."""
    parent, _, last = place.rpartition(".")
    return parent or "." if last.isdigit() else ""


def _line(levels: Sequence[float]) -> DepthLaw:
    """The least-squares line through levels in forward order."""
    logs = np.array(levels)
    depth = np.arange(len(logs))[::-1]
    slope, start = np.polyfit(depth, logs, 1)
    residual = float(np.sqrt(np.mean((start + slope * depth - logs) ** 2)))
    return DepthLaw(float(slope), len(logs), residual, float(start))


@dataclass(frozen=True, slots=True)
class DepthPoint:
    """The gradient of a net of one depth.

    Attributes:
        depth: As the builder counts it.
        total: log10 gain of the gradient's norm from the loss's end of the chain to the input's.
        smallest: Parameter with the smallest gradient that is not exactly zero.
        log10_rms: log10 RMS of that gradient.
        abstains: Why the prediction is not to be trusted at this depth, if so.
    """

    depth: int
    total: float
    smallest: str
    log10_rms: float
    abstains: tuple[str, ...] = ()

    def margin(self, format_name: str) -> float:
        """Decades between that gradient and the format's smallest normal number; negative below it."""
        return self.log10_rms - FORMATS[format_name].min_normal * math.log10(2)


def across_depth(
    build_at: Callable[[int], Callable[[], nn.Module]],
    depths: Iterable[int],
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    seed: int = 0,
) -> Iterator[DepthPoint]:
    """Predict the same net at several depths.

    Args:
        build_at: From a depth to a builder, as :func:`~evenflow.predict.predict` takes it.
        depths: Which ones.
        inputs: As for :func:`~evenflow.predict.predict`.
        loss: Likewise.
        seed: Likewise.

    Raises:
        ModelError: A net could not be built or followed.
        LossError: The loss raised, is no scalar, or has no gradient.
    """
    from evenflow.predict.batch import predict

    for depth in depths:
        flow = predict(build_at(depth), inputs, loss, seed=seed)
        sizes = {
            name: stats.log10_rms
            for name, stats in flow.stats(Role.PARAMETER_GRADIENT).items()
            if stats.mean_square > 0
        }
        smallest = min(sizes, key=lambda name: sizes[name], default="")
        yield DepthPoint(
            depth,
            math.fsum(link.log10_gain for link in flow.budget("op")),
            smallest,
            sizes.get(smallest, -math.inf),
            tuple(flow.metadata.get("abstains", ())),
        )


def depth_slope(points: Sequence[DepthPoint]) -> float:
    """Decades of the gradient's norm per unit of depth, towards the input: the line through the totals."""
    return float(np.polyfit([point.depth for point in points], [point.total for point in points], 1)[0])


def underflow_margin(flow: Flow, format_name: str) -> dict[str, float]:
    """Parameter → decades between the RMS of its gradient and the format's smallest normal number."""
    limit = FORMATS[format_name].min_normal * math.log10(2)
    return {
        name: stats.log10_rms - limit
        for name, stats in flow.stats(Role.PARAMETER_GRADIENT).items()
        if stats.mean_square > 0
    }
