"""Attributes that are worked out when first asked for.

As :func:`functools.cached_property`, without the lock that it takes at each first
read up to Python 3.11: a prediction runs in one thread, and reads tens of thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from functools import cached_property
else:

    class cached_property:  # noqa: N801 - the name that type checkers and readers know
        """A method whose value is kept in the instance's ``__dict__``."""

        def __init__(self, function: Callable[[Any], Any]) -> None:
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """The value, from the second time on without coming here."""
            if instance is None:
                return self
            found = instance.__dict__[self.name] = self.function(instance)
            return found


T = TypeVar("T")


def kept(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of one object, in a module above its own, whose value is kept in its ``__dict__``."""
    name = f"{function.__module__}.{function.__name__}"

    @wraps(function)
    def asked(of: Any) -> T:
        memory: dict[str, T] = of.__dict__
        if name not in memory:
            memory[name] = function(of)
        return memory[name]

    return asked


__all__ = ["cached_property", "kept"]
