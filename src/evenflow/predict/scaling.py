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

import math
from dataclasses import dataclass

import numpy as np

from evenflow.flow import FORMATS, Flow, Role

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
    logs = np.array([row.stats.log10_rms for row in rows if row.stats is not None])
    depth = np.arange(len(logs))[::-1]
    slope, start = np.polyfit(depth, logs, 1)
    residual = float(np.sqrt(np.mean((start + slope * depth - logs) ** 2)))
    return DepthLaw(float(slope), len(rows), residual, float(start))


def underflow_margin(flow: Flow, format_name: str) -> dict[str, float]:
    """Parameter → decades between the RMS of its gradient and the format's smallest normal number."""
    limit = FORMATS[format_name].min_normal * math.log10(2)
    return {
        name: stats.log10_rms - limit
        for name, stats in flow.stats(Role.PARAMETER_GRADIENT).items()
        if stats.mean_square > 0
    }
