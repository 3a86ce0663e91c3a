"""Where floating-point formats end, as powers of two.

The exponent of ``x`` is ``e = floor(log2 |x|)``. A format holds normal numbers
for ``min_normal <= e <= max_exponent`` and, with fewer digits, subnormal ones
down to ``min_subnormal``; anything smaller becomes zero.

References:
    IEEE 754-2019, table 3.5 (binary16, binary32, binary64); bfloat16 shares
    binary32's exponent range with 7 fraction bits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """Exponent range of one format (all fields are powers of two)."""

    name: str
    min_subnormal: int
    min_normal: int
    max_exponent: int


FORMATS: dict[str, FloatFormat] = {
    f.name: f
    for f in (
        FloatFormat("float16", -24, -14, 15),
        FloatFormat("bfloat16", -133, -126, 127),
        FloatFormat("float32", -149, -126, 127),
        FloatFormat("float64", -1074, -1022, 1023),
    )
}
