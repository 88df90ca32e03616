"""Putting a function in a hook's place on one connector, whatever its class does about attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvconform.engine.protocol import NotSimulated

_SHADOWS, _OWNER = "_kvconform_shadows", "_kvconform_owner"


def shadow(connector: Any, hook: str, function: Callable[..., Any]) -> None:
    """Let ``connector.hook`` be ``function``, for this instance alone.

    An attribute of the instance does, past a ``__setattr__`` that takes none from strangers. Where the class has the
    last word (a property, or a ``__getattribute__`` that passes everything on) the instance becomes one of a subclass
    of the same name, which looks for the function first.

    Raises:
        NotSimulated: the class lets neither be done, so that nobody can see what the engine asks of the connector.
    """
    try:
        object.__setattr__(connector, hook, function)
    except (AttributeError, TypeError):
        pass
    else:
        if getattr(connector, hook, None) is function:
            return
    try:
        _shadows(connector)[hook] = function
    except Exception as error:
        raise _unseen(connector, hook) from error
    if getattr(connector, hook, None) is not function:
        raise _unseen(connector, hook)


def _shadows(connector: Any) -> dict[str, Callable[..., Any]]:
    cls = type(connector)
    known: dict[str, Callable[..., Any]] | None = cls.__dict__.get(_SHADOWS)
    if known is not None and cls.__dict__[_OWNER] is connector:
        return known
    shadows: dict[str, Callable[..., Any]] = {}
    look_up: Any = cls.__getattribute__

    def found(self: Any, name: str) -> Any:
        # Others of the subclass are there if the connector makes more of its own type.
        return shadows[name] if self is connector and name in shadows else look_up(self, name)

    body: dict[str, Any] = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    body |= {_SHADOWS: shadows, _OWNER: connector, "__getattribute__": found}
    subclass: Callable[..., type[Any]] = type(cls)
    watched = subclass(cls.__name__, (cls,), body)
    object.__setattr__(connector, "__class__", watched)
    return shadows


def _unseen(connector: Any, hook: str) -> NotSimulated:
    return NotSimulated(
        f"calls of {type(connector).__name__}.{hook} cannot be seen: the class keeps others from taking the hook's "
        "place, on the instance and in a subclass"
    )
