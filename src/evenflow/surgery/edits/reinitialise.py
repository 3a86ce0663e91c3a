"""Draw weights anew: Glorot, He, LeCun, orthogonal, delta-orthogonal, critical, depth-scaled, LSUV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery import activations
from evenflow.surgery.critical import critical_gains
from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.errors import PatchError
from evenflow.surgery.layers import Weight, has_weight, is_layer, weights
from evenflow.surgery.pieces.inits import delta_orthogonal_, lsuv_
from evenflow.surgery.pieces.shaped import Shaped
from evenflow.surgery.scene import Place, Scene, Where, at, listing
from evenflow.surgery.script import Call, Ref, Step, call, step
from evenflow.theory import Activation, get_activation, moments

_SCHEMES = ("glorot", "he", "lecun", "orthogonal", "delta_orthogonal", "critical", "lsuv")


@final
@dataclass(frozen=True)
class Reinitialise(Edit):
    """Draw the weights of linear layers, convolutions and attentions anew; biases become 0.

    Attributes:
        scheme: ``glorot``, ``he``, ``lecun``, ``orthogonal``, ``delta_orthogonal``
            (convolutions; linear layers get ``orthogonal``), ``critical`` (weights and
            biases at the edge of chaos) or ``lsuv`` (measured; needs ``inputs``).
        where: Glob over the layers' paths.
        distribution: ``normal`` or ``uniform``, for Glorot, He and LeCun; ``orthogonal``
            or ``normal`` for critical. None: normal; orthogonal for critical.
        gain: Multiplies the standard deviation.
        activation: Of the hidden layers, for He (its slope or gain) and critical. None:
            the one that the model has.
        q: For critical: wanted pre-activation variance. None: 1 for rectifiers, for smooth
            activations what keeps the gradients' spread over the depth at 1.
    """

    name: ClassVar[str] = "reinitialise"
    reference: ClassVar[str] = (
        "Glorot & Bengio 2010; He et al. 2015; LeCun et al. 1998; Saxe et al. 2014; Xiao et al. 2018; "
        "Pennington et al. 2017 (critical); Mishkin & Matas 2016 (LSUV)"
    )
    scheme: str
    where: Where = "*"
    distribution: str | None = None
    gain: float = 1.0
    activation: str | None = None
    q: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "scheme", self.scheme, _SCHEMES)
        offered = {"critical": ("orthogonal", "normal")}.get(self.scheme, ("normal", "uniform"))
        if self.distribution is not None:
            check_choice(self.name, "distribution", self.distribution, offered)
        check_number(self.name, "gain", self.gain, 0.0)
        if self.q is not None:
            check_number(self.name, "q", self.q, 0.0)
        if self.activation is not None:
            get_activation(self.activation)

    @property
    def measures(self) -> bool:
        """Whether it needs the model's inputs."""
        return self.scheme == "lsuv"

    def describe(self) -> str:
        """See :class:`Edit`."""
        told = [f"gain {self.gain:g}"] if self.gain != 1.0 else []
        told += [f"for {self.activation}"] if self.activation else []
        return f"weights{at(self.where)} are drawn by {self.scheme}" + (
            f" ({', '.join(told)})" if told else ""
        )

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        fits = is_layer if self.scheme == "lsuv" else has_weight
        wanted = "linear layers, convolutions" + (" or nn.MultiheadAttention" if fits is has_weight else "")
        places = scene.select(self.where, fits, self.name, wanted)
        for place in places:
            _check_uninitialised(place)
        if self.scheme == "lsuv":
            yield self._measured(scene, places)
            return
        sigma_b2 = 0.0
        found = [weight for place in places for weight in weights(scene, place)]
        gains = [self.gain] * len(found)
        if self.scheme == "critical":
            phi = self._phi(scene)
            point = critical_gains(phi, len(found), self.q)
            first_sigma_w2 = max(point.q - point.sigma_b2, 0.0) if not isinstance(phi, Shaped) else 1.0
            sigma_b2 = point.sigma_b2
            first = next((place.path for place in scene.places() if has_weight(place)), "")
            gains = [
                self.gain * math.sqrt(first_sigma_w2 if weight.place.path == first else point.sigma_w2)
                for weight in found
            ]
        for place in places:
            statements = [
                self._draw(weight, gain)
                for weight, gain in zip(found, gains, strict=True)
                if weight.place is place
            ]
            statements += list(_biases(scene, place, math.sqrt(sigma_b2)))
            yield step(*statements, source=scene.line(place.path))

    def _draw(self, weight: Weight, gain: float) -> Call:
        out, into = weight.matrix
        kernel = weight.tensor.ndim > 2
        uniform = self.distribution == "uniform"
        if self.scheme == "glorot":
            init: Any = nn.init.xavier_uniform_ if uniform else nn.init.xavier_normal_
            return _filled(init, weight, gain=gain)
        if self.scheme in ("he", "lecun"):
            fan_in = into * weight.tensor[0, 0].numel()
            std = gain * self._he_gain(weight) / math.sqrt(fan_in)
            return _spread(weight, std, uniform)
        if self.scheme == "critical":
            if self.distribution == "normal":
                return _spread(weight, gain / math.sqrt(into * weight.tensor[0, 0].numel()), False)
            gain *= math.sqrt(max(1.0, out / into))  # a layer that widens keeps the mean square, not the norm
            if kernel:
                return call(delta_orthogonal_, weight.ref, gain=gain)
            return _filled(nn.init.orthogonal_, weight, gain=gain)
        if self.scheme == "delta_orthogonal" and kernel:
            return call(delta_orthogonal_, weight.ref, **({"gain": gain} if gain != 1.0 else {}))
        return _filled(nn.init.orthogonal_, weight, gain=gain)

    def _he_gain(self, weight: Weight) -> float:
        """1/√(E φ²): √2 for ReLU, the default; 1 for LeCun."""
        if self.scheme == "lecun":
            return 1.0
        return moments(self.activation or "relu").gain

    def _phi(self, scene: Scene) -> Activation | Shaped:
        """The activation between the layers.

        Raises:
            PatchError: It is not clear which one.
        """
        if self.activation is not None:
            return get_activation(self.activation)
        found: dict[str, Activation | Shaped] = {}
        for use in activations.hidden(scene):
            module = use.place.module
            if isinstance(module, Shaped):
                found["a shaped activation"] = module
            elif use.called or use.attribute:
                found[use.name] = get_activation(use.name)
            else:
                phi = activations.as_theory(module)
                found[phi.name] = phi
        if len(found) != 1:
            what = f"it has {listing(list(found), 4)}" if found else "no activation can be seen in it"
            raise PatchError(
                f"reinitialise does not fit this model: a critical init needs one activation, and {what}. "
                'Expected one kind between all layers; name it: Reinitialise("critical", activation="tanh").'
            )
        return next(iter(found.values()))

    def _measured(self, scene: Scene, places: list[Place]) -> Step:
        if scene.inputs is None:
            raise PatchError(
                "reinitialise by lsuv measures the model on a batch, and none was given. "
                "Give what the model is called with: patch.apply(model, inputs)."
            )
        if not isinstance(scene.model, nn.Module):
            raise PatchError("reinitialise by lsuv does not fit models by role. Expected a single module.")
        try:
            paths = _in_order(scene.model, scene.inputs, places)
        except Exception as error:
            raise PatchError(
                f"reinitialise by lsuv could not call the model: {type(error).__name__}: {error}. "
                "Expected what the model's forward takes: a tensor, a tuple or a dict."
            ) from error
        return step(call(lsuv_, Ref("model"), Ref("inputs"), paths))


def _filled(init: Any, weight: Weight, **settings: float) -> Call:
    return call(init, weight.ref, **{key: value for key, value in settings.items() if value != 1.0})


def _spread(weight: Weight, std: float, uniform: bool) -> Call:
    if uniform:
        bound = std * math.sqrt(3.0)
        return call(nn.init.uniform_, weight.ref, -bound, bound)
    return call(nn.init.normal_, weight.ref, std=std)


def _biases(scene: Scene, place: Place, std: float) -> Iterator[Call]:
    for name in ("bias", "in_proj_bias"):
        if getattr(place.module, name, None) is not None:
            ref = scene.ref(place.path, name)
            yield call(nn.init.normal_, ref, std=std) if std else call(nn.init.zeros_, ref)


def _check_uninitialised(place: Place) -> None:
    weight = getattr(place.module, "weight", None)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise PatchError(
            f"reinitialise does not fit {place}: a lazy layer has no shape yet. "
            "Run a batch through the model first."
        )


def _in_order(model: nn.Module, inputs: Any, places: list[Place]) -> list[str]:
    """Paths of the layers in the order in which a forward pass runs them, without those that do not run."""
    paths: list[str] = []

    def note(path: str) -> Any:
        return lambda *_: paths.append(path) if path not in paths else None

    handles = [place.module.register_forward_pre_hook(note(place.path)) for place in places]
    kept = {name: value.clone() for name, value in model.named_buffers()}
    try:
        model(**inputs) if isinstance(inputs, dict) else model(
            *(inputs if isinstance(inputs, tuple) else (inputs,))
        )
    finally:
        for handle in handles:
            handle.remove()
        for name, value in model.named_buffers():
            value.copy_(kept[name])
    return paths
