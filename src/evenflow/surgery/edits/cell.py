"""Replace plain recurrent layers by gated ones, or by orthogonal ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from evenflow.surgery.edit import Edit, check_choice, check_number
from evenflow.surgery.errors import PatchError
from evenflow.surgery.pieces.cells import LSTMForRNN, OrthogonalRNN
from evenflow.surgery.pieces.inits import gate_bias_
from evenflow.surgery.scene import Place, Scene, Where, at
from evenflow.surgery.script import Step, call, step

_KINDS = {"lstm": "LSTM", "gru": "GRU", "orthogonal": "orthogonal RNN"}


@final
@dataclass(frozen=True)
class ReplaceCell(Edit):
    """Put an LSTM or a GRU of the same sizes in place of an ``nn.RNN``; also of an ``nn.RNNCell``, by a GRU.

    Or an orthogonal recurrence (exp-RNN) in place of an ``nn.RNN`` of one layer and one direction.

    Code that unpacks ``out, h = rnn(x, h)`` stays as it is: the LSTM's cell state travels
    inside h.

    Attributes:
        to: ``lstm``, ``gru`` or ``orthogonal``.
        where: Glob over the recurrent layers' paths.
        forget_bias: Of the LSTM, where it starts; None: PyTorch's own.
    """

    name: ClassVar[str] = "replace_cell"
    reference: ClassVar[str] = (
        "Hochreiter & Schmidhuber 1997; Cho et al. 2014; Jozefowicz et al., ICML 2015 (forget bias); "
        "Lezcano-Casado & Martínez-Rubio, ICML 2019 (orthogonal)"
    )
    to: str = "lstm"
    where: Where = "*"
    forget_bias: float | None = 1.0

    def __post_init__(self) -> None:
        check_choice(self.name, "to", self.to, tuple(_KINDS))
        if self.forget_bias is not None:
            check_number(self.name, "forget_bias", self.forget_bias, -100.0, 100.0)

    def describe(self) -> str:
        """See :class:`Edit`."""
        return f"plain recurrent layers{at(self.where)} become {_KINDS[self.to]}s"

    def model_steps(self, scene: Scene) -> Iterator[Step]:
        """See :class:`Edit`."""
        places = scene.select(
            self.where,
            lambda place: isinstance(place.module, (nn.RNN, nn.RNNCell)),
            self.name,
            "nn.RNN or nn.RNNCell",
        )
        cells = [place for place in places if isinstance(place.module, nn.RNNCell)]
        if self.to == "orthogonal":
            for place in places:
                yield step(*scene.put(place, _orthogonal(scene, place)), source=scene.line(place.path))
            return
        if cells and self.to == "lstm":
            raise PatchError(
                f"replace_cell does not fit {cells[0]}: code that steps a cell by hand keeps one state, "
                'and an LSTM cell has two. Expected nn.RNN; use ReplaceCell("gru").'
            )
        for place in places:
            statements: list[Any] = list(scene.put(place, self._new(scene, place)))
            if self.to == "lstm" and self.forget_bias is not None and place.module.bias:
                ways = ("", "_reverse") if place.module.bidirectional else ("",)
                for layer in range(place.module.num_layers):  # type: ignore[arg-type]
                    for way in ways:
                        for bias, value in (("bias_ih_l", self.forget_bias), ("bias_hh_l", 0.0)):
                            ref = scene.ref(place.path, f"{bias}{layer}{way}")
                            statements.append(call(gate_bias_, ref, 4, 1, value))
            yield step(*statements, source=scene.line(place.path))

    def _new(self, scene: Scene, place: Place) -> Any:
        old: Any = place.module
        if isinstance(old, nn.RNNCell):
            return scene.new(
                nn.GRUCell, old.input_size, old.hidden_size, **({} if old.bias else {"bias": False})
            )
        given = {
            "num_layers": (old.num_layers, 1),
            "bias": (old.bias, True),
            "batch_first": (old.batch_first, False),
            "dropout": (old.dropout, 0.0),
            "bidirectional": (old.bidirectional, False),
        }
        settings = {key: value for key, (value, default) in given.items() if value != default}
        kind = LSTMForRNN if self.to == "lstm" else nn.GRU
        return scene.new(kind, old.input_size, old.hidden_size, **settings)


def _orthogonal(scene: Scene, place: Place) -> Any:
    old: Any = place.module
    if isinstance(old, nn.RNNCell) or old.num_layers > 1 or old.bidirectional:
        raise PatchError(
            f"replace_cell does not fit {place}: an orthogonal recurrence has one layer and one direction. "
            'Expected such an nn.RNN; use ReplaceCell("gru").'
        )
    settings = {"batch_first": True} if old.batch_first else {}
    return scene.new(OrthogonalRNN, old.input_size, old.hidden_size, **settings)
