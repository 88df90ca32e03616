"""Placeholders in strings of the configuration: which there are, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kvconform.errors import UsageError

PLACEHOLDERS = "{dir}, {port} and {port:NAME}"
ROUTER_PLACEHOLDERS = "{transfer}, {producer} and {producer:VARIABLE}"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"dir|port(:[A-Za-z0-9_.-]+)?")
ROUTER_NAME = re.compile(r"transfer|producer(:[A-Za-z_][A-Za-z0-9_]*)?")
_OF_A_SCENARIO = re.compile(r"(?<!\{)\{(dir|port(:[A-Za-z0-9_.-]+)?)\}(?!\})")


def placeholders(value: Any) -> frozenset[str]:
    """Names of all placeholders in a value, e.g. ``{"dir", "port:store"}``: what :func:`expand` will need."""
    return frozenset(
        match.group(1) for _, text in strings_in(value, "") for match in _TOKEN.finditer(text) if match.group(1)
    )


def expand(value: Any, substitutions: Mapping[str, str | int]) -> Any:
    """Copy of a configuration value with its placeholders replaced; pure.

    ``{dir}`` is a fresh directory that all roles and engines of a scenario share. ``{port}`` and ``{port:NAME}`` are
    free ports; the same NAME is the same port within a scenario. ``{{`` and ``}}`` are literal braces.
    Values that are not strings keep their type, and so does a string that is one placeholder and nothing else:
    ``"{port}"`` becomes an int.

    Args:
        value: any TOML value: tables and lists are walked, keys of tables are left alone.
        substitutions: value of every placeholder in ``value``, by name (see :func:`placeholders`).

    Raises:
        KeyError: ``substitutions`` lacks a name.
    """
    if isinstance(value, Mapping):
        return {key: expand(entry, substitutions) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [expand(entry, substitutions) for entry in value]
    if not isinstance(value, str):
        return value
    whole = _TOKEN.fullmatch(value)
    if whole is not None and whole.group(1):
        return substitutions[whole.group(1)]
    literal = {"{{": "{", "}}": "}"}
    return _TOKEN.sub(lambda m: literal.get(m.group()) or str(substitutions[m.group(1)]), value)


def check_placeholders(place: str, text: str, names: re.Pattern[str] = _NAME, expected: str = PLACEHOLDERS) -> None:
    """Refuse a string with a placeholder that is none of ``names``; ``place`` is where it stands.

    Raises:
        UsageError: it has one, or a single brace.
    """
    for match in _TOKEN.finditer(text):
        if match.group() in ("{", "}"):
            raise UsageError(f"{place} = {text!r} has a single '{match.group()}': write it twice to mean a brace.")
        name = match.group(1)
        if name is not None and not names.fullmatch(name):
            raise UsageError(
                f"{place} = {text!r} has the unknown placeholder '{{{name}}}': expected are {expected}, and a "
                "literal brace is written twice."
            )


def strings_in(value: Any, place: str) -> Iterable[tuple[str, str]]:
    """Every string inside a TOML value, with its dotted place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from strings_in(entry, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from strings_in(entry, f"{place}[{index}]")


def has_placeholder(text: str) -> bool:
    """Whether a string has a placeholder that is filled in for each scenario."""
    return _OF_A_SCENARIO.search(text) is not None
