"""Plain copies of engine and connector objects, to tell later what was changed in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal

import torch

MAX_DEPTH = 8
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_Sort = Literal["atom", "mapping", "sequence", "set", "tensor", "object"]
_SORTS: Mapping[_Sort, tuple[type[Any], ...]] = {
    "atom": (bool, int, float, str, bytes, Enum),
    "mapping": (Mapping,),
    "sequence": (list, tuple),
    "set": (set, frozenset),
    "tensor": (torch.Tensor,),
}


@dataclass(frozen=True)
class ObjectState:
    """An object's type name and its attributes, as plain copies."""

    kind: str
    attributes: Mapping[str, Any]


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A copy that shares nothing mutable with ``value``; what can't be looked into is stood for by its type's name."""
    exact = type(value)
    # By far the most common ones first. Containers are copied before they are walked through: a thread of the connector
    # may be at work on them.
    if exact in _ATOMS:
        return value
    if depth:
        if exact is list or exact is tuple:
            return [item if type(item) in _ATOMS else plain(item, depth - 1) for item in list(value)]
        if exact is dict:
            return {
                key if type(key) in _ATOMS else _key(key): item if type(item) in _ATOMS else plain(item, depth - 1)
                for key, item in list(value.items())
            }
        if exact is set or exact is frozenset:
            return frozenset([item if type(item) in _ATOMS else _key(item) for item in list(value)])
    sort, kind, slots = _kind(exact)  # type: ignore[arg-type]  # a class is hashable
    if sort == "atom":
        return value
    if depth == 0:
        return kind
    if sort == "mapping":
        return {_key(key): plain(item, depth - 1) for key, item in list(value.items())}
    if sort == "sequence":
        return [plain(item, depth - 1) for item in list(value)]
    if sort == "set":
        return frozenset(_key(item) for item in list(value))
    if sort == "tensor":
        return (kind, tuple(value.shape), _digest(value))
    attributes = dict(getattr(value, "__dict__", {}))
    for name in slots:
        if hasattr(value, name):
            attributes[name] = getattr(value, name)
    if not attributes:
        return kind
    return ObjectState(kind, {name: plain(item, depth - 1) for name, item in attributes.items() if not callable(item)})


@lru_cache(maxsize=4096)
def _kind(exact: Any) -> tuple[_Sort, str, tuple[str, ...]]:
    """What a type is to :func:`plain`, its name, and its slots: asking abstract classes costs more than a copy."""
    name = f"{exact.__module__}.{exact.__qualname__}"
    for sort, bases in _SORTS.items():
        if issubclass(exact, bases):
            return sort, name, ()
    return "object", name, tuple(_slots(exact))


def _key(value: Any) -> Any:
    """Keys and set members are hashable already; two that differ must stay different."""
    return value if isinstance(value, (str, bytes, int, float, tuple, frozenset, Enum, type(None))) else id(value)


def _slots(kind: type[Any]) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _digest(tensor: Any) -> str:
    """Of the bytes of a tensor in host memory; device memory is left alone."""
    if tensor.device.type != "cpu" or tensor.numel() > 1 << 16:
        return ""
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:12]


def differences(before: Any, after: Any, path: str, *, growth: bool = True) -> Iterator[str]:
    """Where two plain copies differ, one text per place, e.g. ``num_scheduled_tokens['r1']: 16 became 17``.

    With ``growth=False`` entries that were merely added to containers are passed over.
    """
    if before == after:
        return
    if isinstance(before, ObjectState) and isinstance(after, ObjectState) and before.kind == after.kind:
        yield from _of_mappings(before.attributes, after.attributes, lambda name: f"{path}.{name}", growth)
    elif isinstance(before, dict) and isinstance(after, dict):
        yield from _of_mappings(before, after, lambda key: f"{path}[{key!r}]", growth)
    elif isinstance(before, list) and isinstance(after, list):
        for index, (old, new) in enumerate(zip(before, after, strict=False)):
            yield from differences(old, new, f"{path}[{index}]", growth=growth)
        if len(after) < len(before) or (growth and len(after) > len(before)):
            yield f"{path}: {len(before)} entries became {len(after)}"
    elif isinstance(before, frozenset) and isinstance(after, frozenset):
        gone, new = sorted(map(repr, before - after)), sorted(map(repr, after - before))
        if gone or (growth and new):
            yield f"{path}: {_listed('lost', gone)}{_listed('gained', new)}".rstrip()
    else:
        yield f"{path}: {_short(before)} became {_short(after)}"


def _of_mappings(before: Mapping[Any, Any], after: Mapping[Any, Any], name: Any, growth: bool) -> Iterator[str]:
    for key, old in before.items():
        if key in after:
            yield from differences(old, after[key], name(key), growth=growth)
        else:
            yield f"{name(key)} is gone"
    if growth:
        yield from (f"{name(key)} is new" for key in after if key not in before)


def _listed(verb: str, items: list[str]) -> str:
    return f"{verb} {', '.join(items)} " if items else ""


def _short(value: Any) -> str:
    text = value.kind if isinstance(value, ObjectState) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
