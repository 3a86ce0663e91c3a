"""EF701: where the first NaN or infinity came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from evenflow.diagnose import ops
from evenflow.diagnose.finding import Cause, CauseName, Evidence, Finding, Severity, Symptom
from evenflow.diagnose.glossary import remedies
from evenflow.diagnose.rule import CannotJudgeError, Page, Rule, Threshold
from evenflow.diagnose.text import count, listing, place, site
from evenflow.flow import FORMATS, LOSS_PATH, Flow, Role, Row

NEAR_THE_END = Threshold(
    2.0,
    "powers of two below the end of the format within which its largest finite numbers prove an overflow",
    "a factor of 4: a product or sum of such entries exceeds 2^16 (float16) or 2^128 (float32, bfloat16); "
    "IEEE 754-2019, table 3.5",
)

_DOMAIN = {
    "log": "log of 0 is −∞, of a negative number NaN; clamp its input from below",
    "log2": "log of 0 is −∞, of a negative number NaN; clamp its input from below",
    "log10": "log of 0 is −∞, of a negative number NaN; clamp its input from below",
    "sqrt": "sqrt of a negative number is NaN, and its slope at 0 is infinite; add a small constant inside",
    "rsqrt": "1/sqrt of 0 is infinite; add a small constant inside",
    "div": "division by 0; add a small constant to the divisor",
    "reciprocal": "division by 0; add a small constant to the divisor",
    "pow": "a negative base or exponent, or a slope that is infinite at 0; add a small constant to the base",
    "exp": "exp overflows float32 above 88 and float16 above 11; subtract the maximum first",
    "linalg_vector_norm": "a norm has no slope at 0; add a small constant inside the root",
    "norm": "a norm has no slope at 0; add a small constant inside the root",
    "std": "a standard deviation has no slope where all entries are equal; add a small constant",
    "acos": "its slope is infinite at ±1; clamp the input inside",
    "asin": "its slope is infinite at ±1; clamp the input inside",
    "where": "both branches of where are differentiated; make the unused one finite",
}
"""Ops that can make a non-finite number out of finite ones, and how."""

FROM_OUTSIDE = Threshold(
    0.6,
    "confidence that the loss is to blame if a finite output gets a gradient that is no number",
    "a judgement: targets that hold NaN look the same from here, and are rarer than a log of 0",
)
_LEFT_ITS_DOMAIN = (
    "A loss that is written by hand leaves its domain, as log(0) or a division by 0 do, "
    "or the targets hold NaN."
)

_IN_THE_GLOSSARY = (CauseName.PRECISION_OVERFLOW, CauseName.INIT_TOO_LARGE)
"""Causes with remedies of their own; of others the evidence says what to do."""

_MASKING = frozenset({"masked_fill", "add", "where", "baddbmm"})


@final
class NonFinite(Rule):
    """Follows NaN and infinity back to the first op that made one."""

    code = "EF701"
    name = "non_finite"
    symptom = Symptom.NON_FINITE
    summary = (
        "NaN or infinity in activations, gradients or weights, traced to the op that made the first one."
    )
    causes = (
        CauseName.WRONG_LOSS_OR_OUTPUT,
        CauseName.PRECISION_OVERFLOW,
        CauseName.INIT_TOO_LARGE,
        CauseName.UNKNOWN,
    )
    thresholds = (NEAR_THE_END, FROM_OUTSIDE)
    page = Page(
        what="""\
The loss is NaN or infinite, or the gradients are. One such entry spreads through every
matrix product to the whole network, so where it is *seen* says little about where it
was *made*.""",
        why="""\
A number left its format (float16 ends at 65504; exp overflows float32 above 88); an op
left its domain (log 0, 0/0, the root of a negative number); a slope is infinite (sqrt
or a norm at 0); an attention row is masked as a whole; or the data or the weights
were not finite to begin with.""",
        mathematics="""\
NaN + x = NaN · x = NaN. In y = Wx one NaN in x makes every entry of y NaN, and in
backward every entry of ∂L/∂W.

d√x/dx = 1/(2√x) → ∞ as x → 0. `where(x > 0, sqrt(x), 0)` still multiplies that ∞ by
0, which is NaN.""",
        detection="""\
First the weights are looked at, then activations in forward order, then gradients
from the loss backwards. The origin is the first non-finite output whose inputs are
finite. Infinities that nothing takes up, such as the −∞ of an attention mask before
its softmax, are no fault: there is an alarm only if weights, gradients or the loss are
affected. Finite neighbours within a factor of 4 of the format's end tell an overflow
from an op that left its domain.""",
        remedies="""\
Follow the advice for the op that is named; use bfloat16 or float32 where float16
overflows; check the batch with `torch.isfinite`; clip the gradient and lower the
learning rate if the weights were lost in an earlier step.""",
        references=(
            "IEEE Std 754-2019, clauses 3.6, 6.2 and 7.",
            "Micikevicius et al., Mixed precision training, ICLR 2018.",
            "Li et al., RANUM: reliability assurance for deep neural network architectures against numerical "
            "defects, ICSE 2023.",
        ),
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        """See :class:`~evenflow.diagnose.rule.Rule`."""
        if all(row.stats is None for row in flow):
            raise CannotJudgeError("the Flow holds no statistics")
        weights = _broken(flow, Role.PARAMETER)
        if weights:
            yield _in_weights(weights)
            return
        gradients = _broken(flow, Role.ACTIVATION_GRADIENT)
        updates = _broken(flow, Role.PARAMETER_GRADIENT)
        loss = flow.metadata.get("loss")
        loss_is_broken = isinstance(loss, float) and not math.isfinite(loss)
        if not (gradients or updates or loss_is_broken):
            return
        activations = _Spread(flow)
        if activations.origin is not None:
            yield activations.finding(activations.origin)
        elif gradients:
            yield _in_backward(flow, gradients[-1])
        elif updates:
            yield _in_update(updates[0])


def _broken(flow: Flow, role: Role) -> list[Row]:
    return [row for row in flow.select(role) if _is_broken(row)]


def _is_broken(row: Row | None) -> bool:
    return row is not None and row.stats is not None and row.stats.nonfinite_count > 0


class _Spread:
    """Non-finite activations and who took them up."""

    def __init__(self, flow: Flow) -> None:
        self.rows = {row.order: row for row in flow.select(Role.ACTIVATION)}
        self.consumers: dict[int, list[Row]] = {order: [] for order in self.rows}
        for row in self.rows.values():
            for source in row.inputs:
                if source in self.consumers:
                    self.consumers[source].append(row)
        self.origin = next((row for row in self.rows.values() if self._starts(row)), None)

    def _starts(self, row: Row) -> bool:
        """Whether non-finite numbers appear here first and go on (or end up in the loss)."""
        if not _is_broken(row) or any(_is_broken(self.rows.get(source)) for source in row.inputs):
            return False
        return not self.consumers[row.order] or any(map(_is_broken, self.consumers[row.order]))

    def finding(self, row: Row) -> Finding:
        """What is known of the first non-finite output."""
        assert row.stats is not None
        op, message = row.site.op, f"The first NaN or infinity is made by {place(row)}."
        masked = [
            after
            for after in self.consumers[row.order]
            if after.site.op in (*ops.SOFTMAX, "_log_softmax") and _is_broken(after)
        ]
        if op in _MASKING and masked:
            row = masked[0]
            message = f"The first NaN or infinity is made by {place(row)}."
            cause = Cause(
                CauseName.UNKNOWN,
                1.0,
                "Its input holds rows that are masked as a whole; softmax over nothing but −∞ is NaN.",
            )
        elif op in _DOMAIN and row.site.path == LOSS_PATH and not any(map(_near_the_end, self._inputs(row))):
            cause = Cause(CauseName.WRONG_LOSS_OR_OUTPUT, 1.0, f"{op}: {_DOMAIN[op]}.")
        elif any(map(_near_the_end, (row, *self._inputs(row)))):
            cause = _overflow(row, self.rows)
        elif op in _DOMAIN:
            cause = Cause(CauseName.UNKNOWN, 1.0, f"{op}: {_DOMAIN[op]}.")
        elif not row.inputs:
            message = f"The batch holds NaN or infinity; {place(row)} reads it."
            cause = Cause(
                CauseName.UNKNOWN,
                1.0,
                "It is the first op, its weights are finite, and its output is far from the end of its "
                "format.",
            )
        else:
            cause = Cause(CauseName.UNKNOWN, 1.0, f"All that {op} reads is finite.")
        return _finding(row, message, cause)

    def _inputs(self, row: Row) -> list[Row]:
        return [source for order in row.inputs if (source := self.rows.get(order)) is not None]


def _near_the_end(row: Row, share: float = 1.0) -> bool:
    """Whether finite entries reach up to the end of their format, or to a share of its decades."""
    limits = FORMATS.get(row.dtype)
    if limits is None or row.stats is None or row.stats.abs_max is None:
        return False
    end: float = 2.0 ** (share * (limits.max_exponent + 1 - NEAR_THE_END.value))
    return row.stats.abs_max >= end


def _overflow(row: Row, rows: dict[int, Row]) -> Cause:
    assert row.stats is not None
    largest = row.stats.abs_max or 0.0
    if row.dtype == "float16":
        return Cause(
            CauseName.PRECISION_OVERFLOW,
            1.0,
            f"Its finite entries reach {largest:.0f}; float16 ends at 65504.",
        )
    first = next((other for other in rows.values() if other.stats is not None and other.stats.rms > 0.0), row)
    assert first.stats is not None
    return Cause(
        CauseName.INIT_TOO_LARGE,
        1.0,
        f"Activations grow from an RMS of {first.stats.rms:.1e} at {place(first)} to {largest:.1e} here, "
        f"the end of {row.dtype}.",
    )


def _in_weights(rows: list[Row]) -> Finding:
    cause = Cause(CauseName.UNKNOWN, 1.0, "They were lost in an earlier step, or loaded like this.")
    names = listing([row.site.path for row in rows])
    return Finding(
        code=NonFinite.code,
        symptom=Symptom.NON_FINITE,
        severity=Severity.ERROR,
        site=rows[0].site.path,
        message=f"{count(len(rows), 'parameter')} already held NaN or infinity before this step: {names}.",
        causes=(cause,),
        evidence=(_counted(rows[0]),),
        remedies=(
            "Go back to the last checkpoint with finite weights, lower the learning rate and clip the "
            "gradient.",
        ),
    )


def _in_backward(flow: Flow, row: Row) -> Finding:
    """``row`` is the non-finite gradient nearest to the loss: what consumed its tensor made it."""
    after = [
        other
        for other in flow.select(Role.ACTIVATION_GRADIENT)
        if row.order in other.inputs and not _is_broken(other)
    ]
    maker = next((other for other in after if other.site.op in _DOMAIN), after[0] if after else row)
    if maker.site.op in _DOMAIN:
        name = CauseName.WRONG_LOSS_OR_OUTPUT if maker.site.path == LOSS_PATH else CauseName.UNKNOWN
        cause = Cause(name, 1.0, f"{maker.site.op}: {_DOMAIN[maker.site.op]}.")
    elif _near_the_end(row) and row.dtype == "float16":
        cause = _overflow(row, {})
    elif not after and _comes_from_loss(flow, row):
        message = f"{place(row)} is finite, and the gradient that the loss sends back to it is not."
        cause = Cause(CauseName.WRONG_LOSS_OR_OUTPUT, FROM_OUTSIDE.value, _LEFT_ITS_DOMAIN)
        return _finding(row, message, cause)
    else:
        cause = Cause(CauseName.UNKNOWN, 1.0, f"The gradient that reached {place(maker)} was finite.")
    return _finding(
        maker,
        f"All activations are finite; the first NaN or infinity of backward is made by {place(maker)}.",
        cause,
        row,
    )


def _comes_from_loss(flow: Flow, row: Row) -> bool:
    """Whether the loss, of which nothing else is known, made of a modest output a gradient that is no number.

    Half the decades of a format are modest: squares of such numbers are finite.
    """
    output = next((other for other in flow.select(Role.ACTIVATION) if other.order == row.order), None)
    scaled = flow.metadata.get("loss_scale") not in (None, 1.0)
    seen = any(other.site.path == LOSS_PATH for other in flow)
    return output is not None and not (scaled or seen or _near_the_end(output, share=0.5))


def _in_update(row: Row) -> Finding:
    name = CauseName.PRECISION_OVERFLOW if row.dtype == "float16" else CauseName.UNKNOWN
    cause = Cause(
        name, 1.0, f"Activations and their gradients are finite; their products and sums leave {row.dtype}."
    )
    return _finding(row, f"The gradient of {row.site.path} is not finite.", cause)


def _finding(row: Row, message: str, cause: Cause, seen: Row | None = None) -> Finding:
    return Finding(
        code=NonFinite.code,
        symptom=Symptom.NON_FINITE,
        severity=Severity.ERROR,
        site=site(row),
        message=message,
        source=row.source,
        causes=(cause,),
        evidence=(_counted(seen or row),),
        remedies=remedies([cause]) if cause.name in _IN_THE_GLOSSARY else (cause.evidence,),
    )


def _counted(row: Row) -> Evidence:
    assert row.stats is not None
    bad, total = row.stats.nonfinite_count, row.stats.count
    where = row.site.path if row.site.op == "parameter" else place(row)
    return Evidence(f"{bad} of {total} entries at {where} are NaN or infinite.", float(bad), 0.0)
