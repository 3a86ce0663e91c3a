"""Probes inside compiled graphs.

``torch.compile`` traces hooks into its graph, so what a hook does has to be made of
ops. Three of them are defined here. When the graph runs they call back into the
:class:`Listener` that put them there, and so in a compiled step the same code reads
the same tensors as in an eager one:

    begin(model)              a pass through the whole model begins
    seen(x, module) → ticket  a module returned x
    arrived(gradient, ticket) the gradient that came back to it

An identity :class:`torch.autograd.Function` behind ``seen`` carries the ticket to the
backward pass. (It copies, since what a custom function returns as it is must not be
changed in place, and the next module may be ``ReLU(inplace=True)``; the compiler
removes copies that nothing needs.)

What nothing is made of is removed as dead code. The ops of the forward pass say that they
change the listener's tag, which they do not. ``arrived`` must not say so of the gradient: a compiler
that changes the layout of images (Inductor of PyTorch 2.13) copies a changed tensor in the wrong order where
the gradient is used elsewhere too, as in front of a skip connection. It gives a zero, which is
the gradient of :attr:`Listener.sink`, one more input of the graph.

Probes are there in steps that are sampled. The graph depends on the switch
:attr:`Listener.on`, so the compiler makes two graphs, one with and one without
them, and takes the one that fits; a step that is not sampled pays nothing. The price
is that the model is compiled twice.

Autograd's graph, from which an eager pass tells what an output was made from, does
not exist in there. While the compiler traces, its own graph is walked instead.

PyTorch does not look at hooks when it decides whether a graph fits, so one that was made
before the model was watched, or for another model like it, would do and have no probes.
:class:`HookGuards` has them looked at, and :func:`compile_again` lets go of what was made before.

Parts that are compiled by themselves have no probes: the compiler makes one graph
for many equal blocks, and probes, each of which knows its place, would make it as many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("evenflow", "DEF")
_LIBRARY.define("begin(Tensor(a!) listener) -> ()")
_LIBRARY.define("seen(Tensor x, Tensor(a!) listener, int module, bool differentiable) -> Tensor")
_LIBRARY.define("arrived(Tensor gradient, Tensor ticket) -> Tensor")

NOTHING = -1
"""The ticket of an output that is not recorded."""


TracedCall: TypeAlias = tuple[int, int]
"""Number of a module, and which of its calls in the graph."""


class Origin(NamedTuple):
    """Where an output comes from.

    Attributes:
        same: The call that returned this very tensor before.
        inputs: The nearest calls whose outputs it is computed from.
        outside: Whether it came into the graph from outside. The compiler calls hooks on
            the model itself between graphs.
    """

    same: TracedCall | None
    inputs: tuple[TracedCall, ...]
    outside: bool = False


UNKNOWN = Origin(None, ())


class Listener(Protocol):
    """Is told what happens in a compiled graph.

    Attributes:
        tag: As which it is known to the ops (:func:`register`).
        sink: Zero [1] that requires a gradient, and gets zeros (:func:`sink`).
        on: Whether graphs shall have probes.
    """

    tag: Tensor
    sink: Tensor
    on: bool

    def graph_begins(self) -> None:
        """A pass begins."""

    def graph_saw(self, module: int, output: Tensor, *, differentiable: bool) -> int:
        """A module returned ``output``; gives a ticket for its gradient."""

    def graph_brought(self, ticket: int, gradient: Tensor) -> None:
        """A gradient arrived."""

    def graph_traced(self, call: TracedCall, origin: Origin) -> None:
        """The compiler traces a call."""


_LISTENERS: WeakValueDictionary[int, Listener] = WeakValueDictionary()
_NUMBERS = itertools.count()


def register(listener: Listener) -> Tensor:
    """A number for a listener, by which ops find it as long as it is alive.

    A tensor, for a graph takes in any tensor, but is made anew for every number. The ops of
    the forward pass pretend to change it.
    """
    number = next(_NUMBERS)
    _LISTENERS[number] = listener
    return torch.tensor([number])


def sink() -> Tensor:
    """A zero that gradients of no use go to."""
    return torch.zeros(1, dtype=torch.float32, device="cpu", requires_grad=True)


def begin(listener: Listener) -> None:
    """In a traced hook: a pass begins."""
    if listener.on and torch.is_grad_enabled():
        torch.ops.evenflow.begin(listener.tag)


def probe(listener: Listener, module: int, output: Any) -> Any:
    """In a traced hook: the module's output with a probe in it; None to leave it as it is.

    Outputs that are a tensor, or a tuple or list with one, are looked at.
    """
    if not listener.on or not torch.is_grad_enabled():
        return None
    if isinstance(output, Tensor):
        return _probed(listener, module, output) if output.is_floating_point() else None
    if type(output) is tuple or type(output) is list:
        for index, one in enumerate(output):
            if isinstance(one, Tensor) and one.ndim and one.is_floating_point():
                parts = list(output)
                parts[index] = _probed(listener, module, one)
                return tuple(parts) if type(output) is tuple else parts
    return None


def _probed(listener: Listener, module: int, x: Tensor) -> Tensor:
    ticket = torch.ops.evenflow.seen(x, listener.tag, module, x.requires_grad)
    if not x.requires_grad:
        return x
    probed: Tensor = _Probe.apply(x, ticket, listener.sink)  # type: ignore[no-untyped-call]
    return probed


class _Probe(torch.autograd.Function):
    """Identity that shows the gradient to the listener."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ticket: Tensor, sink: Tensor) -> Tensor:
        ctx.save_for_backward(ticket)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (ticket,) = ctx.saved_tensors
        return gradients[0], None, torch.ops.evenflow.arrived(gradients[0], ticket)


def _begin(listener: Tensor) -> None:
    known = _LISTENERS.get(int(listener))
    if known is not None:
        known.graph_begins()


def _seen(x: Tensor, listener: Tensor, module: int, differentiable: bool) -> Tensor:
    number = int(listener)
    known = _LISTENERS.get(number)
    ticket = NOTHING if known is None else known.graph_saw(module, x, differentiable=differentiable)
    return torch.tensor([number, ticket])


def _arrived(gradient: Tensor, ticket: Tensor) -> Tensor:
    listener, number = ticket.tolist()
    known = _LISTENERS.get(listener)
    if known is not None and number != NOTHING:
        known.graph_brought(number, gradient)
    return torch.zeros(1, dtype=torch.float32, device="cpu")


def _trace_seen(x: Tensor, listener: Tensor, module: int, differentiable: bool) -> Tensor:
    """In place of :func:`_seen` while the compiler traces."""
    node = _node_being_traced()
    if node is not None:
        tag = node.args[1].meta["grapharg"].example  # cannot be read in here
        known = next((one for one in _LISTENERS.values() if one.tag is tag), None)
        if known is not None:
            known.graph_traced(*_made_from(node))
    return torch.empty(2, dtype=torch.int64)


for _name, _run, _trace in (
    ("begin", _begin, lambda *_: None),
    ("seen", _seen, _trace_seen),
    ("arrived", _arrived, lambda *_: torch.zeros(1, dtype=torch.float32, device="cpu")),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"evenflow::{_name}", _trace, lib=_LIBRARY)


# --- the graph that is being traced -----------------------------------------------


def _node_being_traced() -> Any:
    """The newest node of the compiler's graph, if it is a ``seen``; None when there is no such graph."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        node = next(reversed(InstructionTranslator.current_tx().output.graph.nodes))
    except AttributeError:  # a later stage of the compiler runs the graph once more
        return None
    return node if _is_seen(node) else None


def _is_seen(node: Any) -> bool:
    return node.op == "call_function" and node.target in (
        torch.ops.evenflow.seen,
        torch.ops.evenflow.seen.default,
    )


def _made_from(node: Any) -> tuple[TracedCall, Origin]:
    """Which call a ``seen`` is about, and where its output comes from."""
    earlier: dict[Any, TracedCall] = {}
    counts: dict[int, int] = {}
    for other in node.graph.nodes:
        if other is node:
            break
        if _is_seen(other):
            module = other.args[2]
            earlier[other.args[0]] = (module, counts.get(module, 0))
            counts[module] = counts.get(module, 0) + 1
    output = node.args[0]
    same = _through_probe(output, earlier)
    found: list[TracedCall] = []
    waiting, known = [output], {output}
    while waiting and same is None:
        for source in waiting.pop().all_input_nodes:
            if source in earlier:
                if earlier[source] not in found:
                    found.append(earlier[source])
            elif source not in known and not _is_seen(source):
                known.add(source)
                waiting.append(source)
    module = node.args[2]
    return (module, counts.get(module, 0)), Origin(same, tuple(found), outside=output.op == "placeholder")


def _through_probe(node: Any, earlier: dict[Any, TracedCall]) -> TracedCall | None:
    """The call whose probed output ``node`` is, untouched."""
    if node in earlier:
        return earlier[node]
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        (function, *_) = node.all_input_nodes
        if "autograd_function_apply" in function.name:
            return next((earlier[one] for one in function.all_input_nodes if one in earlier), None)
    return None


_ORIGINS: dict[tuple[tuple[str, str], ...], dict[TracedCall, Origin]] = {}
"""Paths and classes of a model's modules → what is known of its calls. Models of one structure may share a
graph, which is traced for the first of them only."""


@final
class TracedModules:
    """The modules of a model by number, as compiled graphs name them, and where their outputs come from."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self.modules = list(modules)
        structure = tuple((path, type(module).__qualname__) for path, module in modules)
        self.origins = _ORIGINS.setdefault(structure, {})


_CODES: dict[str, CodeType] = {}


def traceable(kind: str, eager: Callable[..., None], traced: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that runs ``eager``; inside a compiled graph ``traced``, with the module's output alone.

    Hooks of one kind share a code object. The compiler keeps what it has made by code object,
    and allows few versions of one.
    """

    def hook(module: Any, args: Any, *output: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced(*output)
        return eager(module, args, *output)

    hook.__code__ = _CODES.setdefault(kind, hook.__code__.replace(co_name=kind))
    return hook


def is_compiled(module: nn.Module) -> bool:
    """Whether a module itself was compiled."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


@final
class HookGuards:
    """While one is held, PyTorch looks at hooks when it decides whether a compiled graph fits.

    This is a setting of PyTorch's for the whole process, and as it was once all are removed. Graphs
    made meanwhile go on looking, so they end with the hooks.
    """

    _held: ClassVar[int] = 0
    _before: ClassVar[bool] = True

    def __init__(self) -> None:
        config = torch._dynamo.config
        if HookGuards._held == 0:
            HookGuards._before = config.skip_nnmodule_hook_guards
        HookGuards._held += 1
        config.skip_nnmodule_hook_guards = False

    def remove(self) -> None:
        """Let go."""
        HookGuards._held -= 1
        if HookGuards._held == 0:
            torch._dynamo.config.skip_nnmodule_hook_guards = HookGuards._before


def compile_again(model: nn.Module) -> None:
    """Have a compiled model compiled once more, hooks and all, when it is called next."""
    from torch._C._dynamo.eval_frame import reset_code

    for module in filter(is_compiled, model.modules()):
        inner = getattr(module, "_orig_mod", module)
        compiled = module.forward if inner is not module else module._compiled_call_impl
        called = getattr(compiled, "_torchdynamo_orig_callable", None)
        for function in (called, type(inner).forward):
            code = getattr(function, "__code__", None)
            if code is not None:
                reset_code(code)


def compiled_parts(modules: Sequence[tuple[str, nn.Module]]) -> tuple[str, ...]:
    """Paths of modules that are compiled by themselves, inside a model that is not."""
    found: list[str] = []
    for path, module in modules:
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and not inside and is_compiled(module):
            found.append(path)
    return tuple(found)
