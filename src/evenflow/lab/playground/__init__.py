"""Nets with knobs: the gradient's profile expected at once, and measured on request.

A :class:`Net` is a frozen dataclass whose fields are its settings; ``controls``
says what each may be and how to show it. ``expected()`` is a closed form and
takes milliseconds, so that a curve can follow a slider; ``measured(seed)`` draws
the real net and sends one batch through it.
"""

from evenflow.lab.playground.control import Choice, Control, Slider
from evenflow.lab.playground.feed_forward import FeedForward
from evenflow.lab.playground.net import Net, Profile, SettingError
from evenflow.lab.playground.recurrent import Recurrent

NETS: dict[str, type[Net]] = {"feed-forward": FeedForward, "recurrent": Recurrent}
"""Every kind of net, by name."""

__all__ = [
    "NETS",
    "Choice",
    "Control",
    "FeedForward",
    "Net",
    "Profile",
    "Recurrent",
    "SettingError",
    "Slider",
]
