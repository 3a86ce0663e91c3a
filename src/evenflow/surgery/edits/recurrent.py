"""Initialise recurrent layers: forget bias, chrono, identity, orthogonal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.inits import by_gates_, chrono_, gate_bias_, identity_
from evenflow.surgery.scene import Place, Scene, Where, at
from evenflow.surgery.script import Set, Step, call, step

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_WANTED = {
    "forget_bias": (("LSTM",), "nn.LSTM or nn.LSTMCell"),
    "chrono": (("LSTM", "GRU"), "nn.LSTM, nn.GRU or their cells"),
    "identity": (("RNN",), "nn.RNN or nn.RNNCell"),
    "orthogonal": (("RNN", "LSTM", "GRU"), "recurrent layers"),
}


def gates(module: nn.Module) -> int:
    """Number of gates of a recurrent layer or cell; 0 for other modules."""
    for kind, count in _GATES.items():
        if isinstance(module, (getattr(nn, kind), getattr(nn, f"{kind}Cell"))):
            return count
    return 0


@final
@dataclass(frozen=True)
class InitRecurrent(Edit):
    """Start recurrent layers so that they remember.

    Attributes:
        scheme: ``forget_bias`` (of an LSTM, both of PyTorch's bias vectors together);
            ``chrono`` (memories of 1 to T steps); ``identity`` (a plain net with ReLU and the
            identity from state to state, IRNN); ``orthogonal`` (each gate's matrix from state to state).
        where: Glob over the recurrent layers' paths.
        value: The forget bias; the gain, for identity and orthogonal. By default 1.
        longest: T, the longest memory that the task needs, for chrono.
    """

    name: ClassVar[str] = "init_recurrent"
    reference: ClassVar[str] = (
        "Jozefowicz et al., ICML 2015 (forget bias); Tallec & Ollivier, ICLR 2018 (chrono); "
        "Le et al. 2015 (identity)"
    )
    scheme: str
    where: Where = "*"
    value: float = 1.0
    longest: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.name, "scheme", self.scheme, tuple(_WANTED))
        check_number(self.name, "value", self.value, -1e3, 1e3)
        if (self.scheme == "chrono") != (self.longest is not None):
            raise PatchError(
                f"init_recurrent has scheme={self.scheme!r} and longest={self.longest!r}. "
                "Expected longest, the longest memory in steps, with chrono and only there."
            )
        if self.longest is not None:
            check_number(self.name, "longest", self.longest, 2)

    def describe(self) -> str:
        """See :class:`Edit`."""
        told = f" for memories of up to {self.longest} steps" if self.longest else f" ({self.value:g})"
        return f"recurrent layers{at(self.where)} start with {self.scheme.replace('_', ' ')}{told}"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        kinds, wanted = _WANTED[self.scheme]
        counts = {_GATES[kind] for kind in kinds}
        biased = self.scheme in ("forget_bias", "chrono")

        def fits(place: Place) -> bool:
            return gates(place.module) in counts and not (biased and not place.module.bias)

        for place in scene.select(self.where, fits, self.name, wanted + (" with biases" if biased else "")):
            statements: list[Any] = []
            if self.scheme == "identity":
                statements += _to_relu(scene, place)
            for name, _ in place.module.named_parameters(recurse=False):
                statements += self._fill(scene, place, name)
            yield step(*statements, source=scene.line(place.path))

    def _fill(self, scene: Scene, place: Place, name: str) -> list[Any]:
        ref, count = scene.ref(place.path, name), gates(place.module)
        if self.scheme == "forget_bias" and name.startswith("bias"):
            return [call(gate_bias_, ref, 4, 1, self.value if "_ih" in name else 0.0)]
        if self.scheme == "chrono" and name.startswith("bias"):
            zero = call(nn.init.zeros_, ref)
            return [zero, call(chrono_, ref, count, self.longest)] if "_ih" in name else [zero]
        if self.scheme == "orthogonal" and name.startswith("weight_hh"):
            return [call(by_gates_, ref, nn.init.orthogonal_, gain=self.value)]
        if self.scheme == "identity":
            if name.startswith("bias"):
                return [call(nn.init.zeros_, ref)]
            if name.startswith("weight_hh"):
                return [call(identity_, ref, self.value)]
        return []


def _to_relu(scene: Scene, place: Place) -> list[Any]:
    statements = [Set(scene.ref(place.path, "nonlinearity"), "relu")]
    if isinstance(place.module, nn.RNN):
        statements.append(Set(scene.ref(place.path, "mode"), "RNN_RELU"))
    return statements
