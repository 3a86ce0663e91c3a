"""Another game for a generator and a discriminator, over the losses that a program has.

The program's own loss is run to see which points the discriminator is asked about;
its value is not used. What the discriminator gives is taken before a sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evenflow.surgery.pieces.losses import RememberLogits, logits_of

Calls = list[tuple[Any, Tensor]]
Losses = Mapping[str, Callable[[Any, Any], Tensor]]


def tensors_of(thing: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for one in thing.values():
            yield from tensors_of(one)
    elif isinstance(thing, (tuple, list)):
        for one in thing:
            yield from tensors_of(one)


def adversarial(
    losses: Losses,
    kind: str,
    generator: str = "generator",
    discriminator: str = "discriminator",
    penalty: str | None = None,
    weight: float = 10.0,
) -> dict[str, Callable[[Any, Any], Tensor]]:
    """The losses of both roles for another game.

    Args:
        losses: By role, of (models, batch).
        kind: ``non_saturating``, ``lsgan``, ``hinge`` or ``wgan``.
        generator: The role.
        discriminator: The role.
        penalty: ``gp``, weight · (‖∇d‖ − 1)² between real and generated points; ``r1``,
            weight/2 · ‖∇d‖² at real points; None: none.
        weight: Of the penalty.
    """

    def asked(models: Any, batch: Any, role: str) -> tuple[Calls, Calls]:
        """What the discriminator was called with and gave: (real, generated)."""
        calls: Calls = []
        made: list[Tensor] = []
        handles = [
            models[discriminator].register_forward_hook(
                lambda _, args, out: calls.append((args, logits_of(out)))
            ),
            models[generator].register_forward_hook(lambda _, args, out: made.extend(tensors_of(out))),
        ]
        try:
            with RememberLogits():
                losses[role](models, batch)
        finally:
            for handle in handles:
                handle.remove()
        own = {one.untyped_storage().data_ptr() for one in made}
        given = {one.untyped_storage().data_ptr() for one in tensors_of(batch)} - own
        fake = [one for one in calls if one[0][0].untyped_storage().data_ptr() in own]
        real = [one for one in calls if one[0][0].untyped_storage().data_ptr() in given]
        rest = [one for one in calls if not any(one is other for other in (*fake, *real))]
        if len(calls) <= 2 and len(rest) == 1:
            (fake if real or role == generator else real).append(rest[0])
        if not fake or (role == discriminator and not real):
            raise ValueError(
                f"the loss of {role} asks the discriminator about {len(calls)} batches, and which of them "
                "are real and which generated cannot be told. Expected one call with each."
            )
        return real, fake

    def generator_loss(models: Any, batch: Any) -> Tensor:
        _, fakes = asked(models, batch, generator)
        fake = fakes[-1][1]
        if kind == "non_saturating":
            fake = -F.softplus(-fake)
        elif kind == "lsgan":
            fake = -0.5 * (fake - 1).square()
        return -fake.mean()

    def discriminator_loss(models: Any, batch: Any) -> Tensor:
        reals, fakes = asked(models, batch, discriminator)
        (real_args, real), (fake_args, fake) = reals[-1], fakes[-1]
        if kind == "non_saturating":
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        elif kind == "lsgan":
            loss = 0.5 * ((real - 1).square().mean() + fake.square().mean())
        elif kind == "hinge":
            loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        else:
            loss = fake.mean() - real.mean()
        if penalty is None:
            return loss
        points = real_args[0].detach()
        if penalty == "gp":
            mix = torch.rand(len(points), *[1] * (points.ndim - 1), device=points.device, dtype=points.dtype)
            points = mix * points + (1 - mix) * fake_args[0].detach()
        points.requires_grad_()
        with RememberLogits():
            score = logits_of(models[discriminator](points, *real_args[1:]))
        (slope,) = torch.autograd.grad(score.sum(), points, create_graph=True)
        square: Tensor = slope.flatten(1).square().sum(1)
        if penalty == "gp":
            return loss + weight * (square.sqrt() - 1).square().mean()
        return loss + 0.5 * weight * square.mean()

    return {**losses, generator: generator_loss, discriminator: discriminator_loss}
