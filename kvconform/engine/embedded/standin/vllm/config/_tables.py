"""Configuration classes from a table of vLLM's field names, defaults, and what its checks turn the defaults into."""

from __future__ import annotations

import copy
import json
from dataclasses import field, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from kvconform.engine.protocol import NotSimulated

_UNKNOWN, _REQUIRED = {"unknown": True}, {"required": True}


@cache
def _values() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("values.json").read_text())
    return table


class _Unknown:
    """A field whose value the table does not have."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        raise NotSimulated(f"the configuration value {self._name} is not simulated by the engine 'embedded'")


def _nothing(_: Any) -> None:
    """No checks."""


@cache
def fields_of(name: str) -> type[Any]:
    """A dataclass with the fields of vLLM's class ``name``."""
    entry = _values()[name]
    fields: list[Any] = []
    rest: dict[str, Any] = {}
    for key, default in entry["fields"].items():
        if key in entry["parts"] and default is not None:
            fields.append((key, Any, field(default_factory=partial(_part, entry["parts"][key]))))
        elif default == _UNKNOWN and key not in entry["resolved"]:
            rest[key] = _Unknown()
        elif default in (_REQUIRED, _UNKNOWN):
            fields.append((key, Any, field(default=None)))
        elif isinstance(default, (list, dict)):
            fields.append((key, Any, field(default_factory=partial(copy.deepcopy, default))))
        else:
            fields.append((key, Any, field(default=default)))
    # dataclasses call it only where it is there from the beginning.
    rest["__post_init__"] = _nothing
    made = make_dataclass(name, fields, namespace=rest)
    made.__module__ = entry["module"]
    return made


def _part(name: str) -> Any:
    import vllm.config as own

    made = vars(own).get(name)
    return resolved(fields_of(name)() if made is None else made())


def resolved(config: Any) -> Any:
    """Give fields that still have their default what vLLM's checks make of it."""
    entry = _values()[type(config).__name__]
    for name, value in entry["resolved"].items():
        default = entry["fields"][name]
        if default in (_REQUIRED, _UNKNOWN) or getattr(config, name) == default:
            setattr(config, name, copy.deepcopy(value))
    return config
