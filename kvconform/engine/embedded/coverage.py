"""What vLLM has and the stand-in has not: so that asking for it says so, and is no AttributeError of the connector."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("uncovered.json")


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    if not TABLE.is_file():
        return {"packages": {}, "modules": {}, "classes": {}}
    table: dict[str, dict[str, list[str]]] = json.loads(TABLE.read_text())
    return table


def uncovered_modules(package: str) -> frozenset[str]:
    """Names of modules in vLLM's package that the stand-in's has not."""
    return frozenset(_table()["packages"].get(package, ()))


def uncovered_names(module: str) -> frozenset[str]:
    """Names of vLLM's module that the stand-in's has not."""
    return frozenset(_table()["modules"].get(module, ()))


def uncovered_attributes(cls: str) -> frozenset[str]:
    """Attributes of instances of vLLM's class that the stand-in's have not."""
    return frozenset(_table()["classes"].get(cls, ()))
