"""``evenflow predict TARGET``: how gradients will flow, from the model alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from evenflow.cli.errors import plain_errors
from evenflow.cli.help import TaughtCommand
from evenflow.cli.judging import Judging, explanations, judging
from evenflow.cli.output import progress

if TYPE_CHECKING:
    from evenflow.diagnose import Policy
    from evenflow.flow import Flow
    from evenflow.report import ReportContent

_POINTS = 6
"""Depths between the ends of ``--depth``, ends included."""


class _Depths(click.ParamType[tuple[int, ...]]):
    """``10:1000``: depths from one to the other, evenly on a logarithmic scale; ``10,20,40``: these."""

    name = "depths"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        text = str(value)
        try:
            if ":" not in text:
                depths = [int(part) for part in text.split(",")]
            else:
                low, high = (int(part) for part in text.split(":"))
                ratio = (high / low) ** (1 / (_POINTS - 1))
                depths = [round(low * ratio**k) for k in range(_POINTS)]
        except (ValueError, ZeroDivisionError):
            self.fail(f"expected LOW:HIGH or a list such as 10,20,40, got {text!r}", param, ctx)
        if min(depths) < 1 or list(depths) != sorted(depths):
            self.fail(f"expected depths from 1 upwards, smallest first, got {text!r}", param, ctx)
        return tuple(dict.fromkeys(depths))


@click.command(
    "predict",
    cls=TaughtCommand,
    short_help="How gradients will flow, from the model alone: nothing is run.",
    examples=[
        ("evenflow predict config.json", "A transformers model of any size, without its weights."),
        ("evenflow predict my.nets:Wide --input 32x3x64x64", "A model class, with images of that shape."),
        ("evenflow predict config.json --depth 6:96", "How it scales from 6 layers to 96."),
        ("evenflow predict train.py:build --against", "With one measured batch laid over it."),
    ],
)
@click.argument("target", type=click.Path())
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE[:DTYPE[:HIGH]]",
    help="Random data for a TARGET without a batch, as in evenflow check.",
)
@click.option(
    "--depth",
    "depths",
    type=_Depths(),
    metavar="LOW:HIGH",
    help="Predict at depths from LOW to HIGH (or a list, as 10,20,40): the slope in decades per layer, the "
    "largest trainable depth, and where number formats give out. TARGET is a config, or a function or class "
    "with an argument such as depth or num_layers, and --input.",
)
@click.option("--against", is_flag=True, help="Build the model, measure one batch, and lay it over.")
@judging
@click.option("--seed", default=0, show_default=True, help="For made-up data, and weights with --against.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    target: str,
    inputs: tuple[str, ...],
    depths: tuple[int, ...] | None,
    against: bool,
    judging: Judging,
    seed: int,
    debug: bool,
) -> None:
    """Predict the size of every activation and gradient of TARGET without running it.

    TARGET is as in evenflow check. Weights are never made for a transformers
    config, or for a class or function that --input gives data for; a function
    that brings its own batch is called, and its model is predicted from the
    mean and variance of each of its weights.

    Where the prediction is not to be trusted it abstains, and says why.
    """
    if depths is not None and against:
        ctx.fail("--against measures one model; leave out --depth, or --against.")
    judging.refuse_to_overwrite(ctx)
    with plain_errors(debug=debug):
        policy = judging.policy()
        if depths is not None:
            _across(target, inputs, depths, seed)
            ctx.exit(0)
        judging.finish(ctx, _predicted(target, inputs, policy, against=against, seed=seed))


def _predicted(
    target: str, inputs: tuple[str, ...], policy: Policy, *, against: bool, seed: int
) -> ReportContent:
    from rich.console import Console

    with Console(stderr=True).status(f"{target}: predicting"):  # only where there is a terminal
        from evenflow.cli.target import load_plan
        from evenflow.diagnose import diagnose
        from evenflow.predict import predict
        from evenflow.report import ReportContent

        plan = load_plan(target, inputs, seed=seed)
        predicted = predict(plan.build, plan.inputs, plan.loss, seed=seed)
        shown = predicted = _with_notes(predicted, (*plan.notes, *_scaling(predicted)))
        if against:
            from evenflow.cli.target import load_target
            from evenflow.measure import measure

            loaded = load_target(target, inputs, seed=seed)
            measured = measure(loaded.model, loaded.inputs, loaded.loss, seed=seed)
            shown = _with_notes(measured, loaded.notes)
        diagnosis = policy.settle(diagnose(shown, select=policy.select, ignore=policy.ignore))
    return ReportContent(
        shown,
        diagnosis,
        title=target,
        predicted=predicted if against else None,
        explanations=explanations(diagnosis),
    )


def _with_notes(flow: Flow, notes: tuple[str, ...]) -> Flow:
    from evenflow.flow import Flow

    return Flow(flow.rows, flow.source, flow.metadata, (*notes, *flow.notes))


def _scaling(flow: Flow) -> tuple[str, ...]:
    """The depth law of repeated blocks, in words."""
    from evenflow.predict import block_law
    from evenflow.predict.scaling import TRAINABLE_DEPTH_SCALES

    law = block_law(flow)
    if law is None:
        return ()
    if abs(law.slope) * law.links < 0.05:
        return (f"Over its {law.links} blocks the gradient keeps its size; more of them change nothing.",)
    text = (
        f"Each of its {law.links} blocks changes the gradient's RMS by {law.slope:+.3f} decades towards the "
        "input"
    )
    if law.slope < 0:
        deepest = law.depth_until_underflow("float16")
        text += f"; in float16 it is below the smallest normal number after {deepest:.0f} blocks"
    trainable = law.trainable_depth
    if math.isfinite(trainable):
        text += f"; trainable to about {trainable:.0f} blocks ({TRAINABLE_DEPTH_SCALES:g} depth scales)"
    return (f"{text}.",)


def _across(target: str, inputs: tuple[str, ...], depths: tuple[int, ...], seed: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from evenflow.cli.target import DEPTH_ARGUMENTS, load_plan
    from evenflow.errors import TargetError
    from evenflow.predict.scaling import TRAINABLE_DEPTH_SCALES, across_depth, depth_slope

    plan = load_plan(target, inputs, seed=seed)
    if plan.at_depth is None:
        raise TargetError(
            f"{target} has no depth to set. --depth needs a transformers config, or a class or function with "
            f"one of the arguments {', '.join(DEPTH_ARGUMENTS)}, and --input for its data."
        )
    with progress(target) as track:
        found = across_depth(plan.at_depth, depths, plan.inputs, plan.loss, seed=seed)
        points = [point for _, point in zip(track(range(len(depths))), found, strict=False)]
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("depth", "‖gradient‖ first/last", "smallest gradient", "its RMS"):
        table.add_column(name, justify="left" if name == "smallest gradient" else "right")
    formats = ("float16", "bfloat16", "float32")
    for name in formats:
        table.add_column(name, justify="right")
    for point in points:
        margins = (point.margin(name) for name in formats)
        table.add_row(
            f"{point.depth}{'*' if point.abstains else ''}",
            f"10^{point.total:.2f}",
            Text(point.smallest, overflow="ellipsis"),
            f"10^{point.log10_rms:.2f}",
            *(Text(f"{margin:+.1f}", style="red" if margin < 0 else "") for margin in margins),
        )
    console.print(table)
    if len(points) > 1:
        slope = depth_slope(points)
        line = f"Slope: {slope:+.4f} decades per layer towards the input."
        if abs(slope) * (points[-1].depth - points[0].depth) > 0.05:
            scale = 1 / (2 * abs(slope) * math.log(10))
            line += (
                f" Depth scale {scale:.3g} layers: trainable to about "
                f"{TRAINABLE_DEPTH_SCALES * scale:.3g} layers ({TRAINABLE_DEPTH_SCALES:g} depth scales)."
            )
        console.print(line, highlight=False)
    reasons = dict.fromkeys(reason for point in points for reason in point.abstains)
    for reason in list(reasons)[:3]:
        console.print(f"* not to be trusted: {reason}", style="yellow", highlight=False)
    console.print(
        "Last columns: decades from that RMS down to the format's smallest normal number.",
        style="dim",
        highlight=False,
    )
